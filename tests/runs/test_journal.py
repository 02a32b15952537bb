"""The journal: complete lines in order, no step twice in a run killed and continued any number of times."""

from __future__ import annotations

import json
import math
import threading
import time

import pytest

from semaim.runs.journal import Journal, read


def lines(path, offset=0):
    return [line for _, line in read(path, offset)]


def points(path, key):
    """(step, value) of a metric, in file order."""
    return [(line["step"], line["metrics"][key]) for line in lines(path) if key in line.get("metrics", {})]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_lines_are_what_was_logged_with_the_time(path):
    before = int(time.time() * 1000)
    journal = Journal(path)
    journal.status("RUNNING")
    journal.log(1, {"train/loss": 2.5, "train/lr": 1e-5})
    journal.log(2, {"train/loss": 2.25})
    journal.status("FINISHED")
    after = int(time.time() * 1000)
    assert len(lines(path)) == 4  # readable before the journal is closed
    journal.close()
    found = lines(path)
    times = [line.pop("time") for line in found]
    assert found == [
        {"status": "RUNNING"},
        {"step": 1, "metrics": {"train/loss": 2.5, "train/lr": 1e-5}},
        {"step": 2, "metrics": {"train/loss": 2.25}},
        {"status": "FINISHED"},
    ]
    assert before <= times[0] <= times[1] <= times[2] <= times[3] <= after
    assert all(isinstance(moment, int) for moment in times)
    assert path.read_text().count("\n") == 4


def test_an_image_goes_only_forward(path):
    for steps in ((1, 3), (2, 3, 4)):  # the second process continues from a checkpoint of step 1
        journal = Journal(path)
        for step in steps:
            journal.image("orders/centre", step, f"pictures/{step}.png")
        journal.close()
    journal = Journal(path)
    journal.image("orders", 1, "pictures/other.png")  # another picture
    for wrong in ("a+b", "a%b", "a//b", "/a", "", "a~b"):
        with pytest.raises(ValueError, match="names no picture"):
            journal.image(wrong, 9, "pictures/9.png")
    found = [(line["step"], line["image"]["key"], line["image"]["file"]) for line in lines(path)]
    assert found == [
        *((step, "orders/centre", f"pictures/{step}.png") for step in (1, 3, 4)),
        (1, "orders", "pictures/other.png"),
    ]
    assert all(set(line) == {"time", "step", "image"} for line in lines(path))


def test_a_metric_goes_only_forward(path):
    journal = Journal(path)
    for step, value in [(0, 0.0), (5, 5.0), (5, 5.5), (3, 3.0), (6, 6.0)]:
        journal.log(step, {"a": value})
    journal.log(5, {"a": 7.0, "b": 1.0})
    assert points(path, "a") == [(0, 0.0), (5, 5.0), (6, 6.0)]
    assert points(path, "b") == [(5, 1.0)]  # another metric of the same step is new
    assert len(lines(path)) == 4  # a line without new values is not written
    assert (journal.next_step("a"), journal.next_step("b"), journal.next_step("c")) == (7, 6, 0)
    journal.close()


def test_steps_repeated_after_continuing_are_not_written_twice(path):
    journal = Journal(path)
    for step in range(1, 8):
        journal.log(step, {"loss": float(step)})
    journal.log(5, {"knn": 80.0})
    journal.close()
    again = Journal(path)  # the checkpoint was of step 4
    assert (again.next_step("loss"), again.next_step("knn")) == (8, 6)
    again.status("RUNNING")
    for step in range(5, 11):
        again.log(step, {"loss": 100.0 + step, "knn": 81.0} if step in (5, 10) else {"loss": 100.0 + step})
    again.close()
    assert points(path, "loss") == [(s, float(s)) for s in range(1, 8)] + [(s, 100.0 + s) for s in (8, 9, 10)]
    assert points(path, "knn") == [(5, 80.0), (10, 81.0)]
    assert sum("status" in line for line in lines(path)) == 1


@pytest.mark.parametrize("torn", [b"{", b'{"time": 1, "step": 3, "metrics": {"loss": 0.25}}', b'{"time": 17, "st'])
def test_a_torn_last_line_is_cut(path, torn):
    journal = Journal(path)
    journal.log(1, {"loss": 4.0})
    journal.log(2, {"loss": 3.0})
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [line["step"] for line in lines(path)] == [1, 2]
    again = Journal(path)
    assert path.read_bytes() == whole
    again.log(3, {"loss": 2.0})  # step 3 does not count as written
    again.close()
    assert points(path, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]


def test_a_journal_of_nothing_but_a_torn_line(path):
    path.write_bytes(b'{"time": 1, "ste')
    journal = Journal(path)
    journal.log(0, {"loss": 1.0})
    journal.close()
    assert points(path, "loss") == [(0, 1.0)]


def test_values_that_are_not_finite_are_left_out_since_json_has_none(path):
    journal = Journal(path)
    journal.log(1, {"nan": math.nan, "up": math.inf, "down": -math.inf, "tiny": 5e-324, "third": 1 / 3})
    journal.close()
    (line,) = lines(path)
    assert line["metrics"] == {"tiny": 5e-324, "third": 1 / 3}
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()


def test_reading_on_from_an_offset(path):
    journal = Journal(path)
    for step in range(5):
        journal.log(step, {"loss": float(step)})
    offsets = [offset for offset, _ in read(path, 0)]
    assert offsets[-1] == path.stat().st_size
    for number, offset in enumerate(offsets):
        assert [line["step"] for line in lines(path, offset)] == list(range(number + 1, 5))
    journal.log(5, {"loss": 5.0})
    journal.close()
    assert [line["step"] for line in lines(path, offsets[-1])] == [5]


def test_a_line_appears_only_when_it_is_complete(path):
    whole = json.dumps({"time": 1, "step": 0, "metrics": {"loss": 1.0}}).encode() + b"\n"
    for end in range(len(whole)):
        path.write_bytes(whole + whole[:end])
        assert [offset for offset, _ in read(path, 0)] == [len(whole)]
        assert list(read(path, len(whole))) == []
    path.write_bytes(whole + whole)
    assert [offset for offset, _ in read(path, len(whole))] == [2 * len(whole)]


def test_a_concurrent_reader_never_gets_part_of_a_line(path):
    """Lines longer than the file buffer are written in pieces."""
    journal = Journal(path)
    metrics = {f"metric_{number:04d}": 1 / (number + 1) for number in range(1000)}  # about 30 kB a line
    written, sizes = [], set()

    def write() -> None:
        """At least 150 lines, and as many as it takes until the reader has read between them."""
        while len(written) < 150 or (len(sizes) < 3 and len(written) < 3000):
            journal.log(len(written), metrics)
            written.append(len(written))

    writer = threading.Thread(target=write)
    writer.start()
    offset, steps = 0, []
    while True:
        alive = writer.is_alive()
        for end, line in read(path, offset):
            offset = end
            steps.append(line["step"])
            assert line["metrics"] == metrics
        sizes.add(path.stat().st_size)
        if not alive:
            break
    writer.join()
    journal.close()
    assert steps == written
    assert offset == path.stat().st_size
    assert len(sizes) > 2  # reads occurred during writes


def test_threads_do_not_mix_their_lines(path):
    journal = Journal(path)
    threads = [threading.Thread(target=lambda key=key: [journal.log(s, {key: float(s)}) for s in range(200)])
               for key in "abcd"]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert len(lines(path)) == 800
    assert all(points(path, key) == [(s, float(s)) for s in range(200)] for key in "abcd")


def test_tags_and_artifacts_are_lines_of_their_own(path):
    journal = Journal(path)
    journal.tags({"pretrained.model": "aim_tiny"})
    journal.artifact("confusion.csv")
    journal.log(1, {"a": 1.0})
    journal.close()
    found = lines(path)
    assert [{key: value for key, value in line.items() if key != "time"} for line in found] == [
        {"tags": {"pretrained.model": "aim_tiny"}},
        {"artifact": "confusion.csv"},
        {"step": 1, "metrics": {"a": 1.0}},
    ]
    assert Journal(path).next_step("a") == 2  # reading skips the other lines
