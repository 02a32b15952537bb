"""Damaged files of runs and sweeps: every command names the file in one line, and goes on with the other runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from semaim.core.files import write_json
from semaim.lifecycle import execute, session
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.sweeps.sweep import FILE, Point, Sweep, failure_file
from support.commands import SMALL
from support.damaging import OF_BYTES, OF_VALUES, PIPE, damage, semaim, told
from support.in_process import go, job

Reader = Callable[[], tuple[int, str]]
OF_RUNS = ("status.json", "environment.json", "config.yaml", "evaluations.json", "mlflow.json", "metrics.jsonl")
LISTED = ("status.json", "environment.json", "config.yaml")  # what `semaim ls` reads
ALL = [PIPE, *OF_BYTES, *OF_VALUES]
PLAIN = [*OF_BYTES, "null", "number", "text", "list"]  # damaged whatever the file should hold


class Place:
    """Runs `good` and `bad`, and `sweep` of one that is finished, one that failed and one that never began."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.kept = folder / "runs", folder / "kept"
        tracked = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        self.overrides = [word for word in SMALL if not word.startswith("tracking")]
        self.overrides += [tracked, f"runs_dir={self.runs}", "tracking.system_metrics_seconds=0"]
        go(self.runs, *self.overrides, "run_name=good", "trainer.max_steps=1")
        write_json(self.runs / "good" / "evaluations.json", {"0": {"online/knn_10_cls": 50.0}})
        for name in ("bad", "stopped"):
            shutil.copytree(self.runs / "good", self.runs / name)
        (self.runs / "bad" / "mlflow.json").unlink()  # it gets an MLflow run of its own
        self.overrides += ["run_name=bad", "trainer.max_steps=2"]
        semaim("sync", str(self.runs / "bad"), "--uri", tracked.removeprefix("tracking.uri="))
        RunFolder(self.runs / "stopped").set_status("failed", error="a reason", step=1)
        runs = ("good", "stopped", "never")
        points = [Point([f"seed={n}"], str(self.runs / name), job=f"here_{n}") for n, name in enumerate(runs)]
        sweep = Sweep("basic", {}, points, restarts=1, command="semaim run -m seed=0,1,2", path=self.runs / "sweep")
        sweep.save()
        for number in range(3):
            (sweep.jobs / f"here_{number}").mkdir(parents=True)
        write_json(failure_file(sweep.jobs / "here_2", 0), {"error": "no", "process": 1, "host": "node"})
        (sweep.jobs / "here_1" / "deaths").write_text("0 2026-01-01T00:00 task 3: Killed\n")
        self.spec = job(*self.overrides)
        shutil.copytree(self.runs, self.kept)

    def restored(self) -> Path:
        shutil.rmtree(self.runs)
        shutil.copytree(self.kept, self.runs)
        return self.runs

    def go_on(self) -> None:
        with session("cpu") as (processes, stop):
            execute(self.spec, processes, stop)


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("damaged"))


@pytest.fixture
def place(_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """As in the class; no signal is sent to a process whose number stands in a damaged file."""
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    _place.restored()
    return _place


def readers(runs: Path) -> dict[str, Reader]:
    """What reads a run without changing it, on `bad` and then `good`."""
    bad, good = str(runs / "bad"), str(runs / "good")
    return {
        "ls": lambda: semaim("ls", str(runs)),
        "ls --json": lambda: semaim("ls", str(runs), "--json"),
        "status": lambda: semaim("status", bad, good),
        "cancel": lambda: semaim("cancel", bad, good),
        "export": lambda: semaim("export", bad, "--overwrite"),
        "sync": lambda: semaim("sync", bad, good),
        "rm": lambda: semaim("rm", "--yes", "--keep-mlflow", bad),
    }


def assert_told(code: int, said: str, file: str) -> None:
    assert "Traceback" not in said
    assert code in (0, 1, 2)
    assert code == 0 or file in said, said


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("file", OF_RUNS)
def test_readers_of_a_damaged_run(place: Place, file: str, kind: str) -> None:
    damage(place.runs / "bad" / file, kind)
    for name, reader in readers(place.runs).items():
        code, said = reader()
        assert_told(code, said, file)
        if name == "ls":
            assert code == 0
            assert "/good" in said
            assert f"damaged: {file}" in said or kind not in PLAIN or file not in LISTED or file == "config.yaml"
        elif name in ("status", "cancel"):
            assert said.count("finished  train/loss") >= 1  # the good one
        elif name == "sync":
            assert "/good: 0 metric points sent" in said
        elif name == "rm":
            assert code == 0
            assert not (place.runs / "bad").exists()


@pytest.mark.parametrize("kind", ["cut", "zeroed", "number", "dicts", "newer"])
@pytest.mark.parametrize("file", [*OF_RUNS, "run.log"])
def test_a_damaged_run_that_continues(place: Place, file: str, kind: str) -> None:
    if file == "run.log" and kind not in OF_BYTES:
        pytest.skip("it has no structure")
    damage(place.runs / "bad" / file, kind)
    before = sorted(path.name for path in (place.runs / "bad" / "checkpoints").iterdir())
    code, said = told(place.go_on)
    assert_told(code, said, file)
    assert said.count("error:") <= 1
    if code:
        assert sorted(path.name for path in (place.runs / "bad" / "checkpoints").iterdir()) == before
    else:
        assert RunFolder(place.runs / "bad").status()["state"] == "finished"


@pytest.mark.parametrize("file", OF_RUNS)
def test_a_check_of_a_damaged_run(place: Place, file: str) -> None:
    damage(place.runs / "bad" / file, "cut")
    code, said = semaim("check", *place.overrides)
    assert_told(code, said, file)
    assert code == (2 if file in ("status.json", "config.yaml") else 0)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("file", [FILE, "jobs/here_2/failure_0000.json", "jobs/here_1/deaths"])
def test_readers_of_a_damaged_sweep(place: Place, file: str, kind: str) -> None:
    path = place.runs / "sweep" / file
    if path.suffix != ".json" and kind not in (PIPE, *OF_BYTES):
        pytest.skip("it has no structure")
    damage(path, kind)
    for verb in (["status"], ["cancel"], ["retry", "--failed"]):
        code, said = semaim(*verb, str(place.runs / "sweep"))
        assert "Traceback" not in said
        assert file != FILE or kind not in PLAIN or (code in (1, 2) and FILE in said)
        assert file == FILE or verb == ["retry", "--failed"] or "good" in said or "seed=0" in said
    code, said = semaim("status", str(place.runs / "stopped"), str(place.runs / "good"))
    assert "Traceback" not in said
    assert "a reason" in said or "Killed" in said
    code, said = semaim("ls", str(place.runs))
    assert code == 0
    assert "/good" in said


def test_the_words_of_a_damaged_run(place: Place) -> None:
    (place.runs / "bad" / "status.json").write_text('{"state": "paused", "step": 3}')
    code, said = semaim("status", str(place.runs / "bad"), str(place.runs / "good"))
    assert code == 1
    assert "bad/status.json is damaged, of a newer version or not readable (state: Input should be 'running'" in said
    code, said = semaim("ls", str(place.runs), "--state", "damaged")
    assert "1 of 4 in" in said
    assert "damaged: status.json" in said


@pytest.mark.parametrize("value", ["NaN", "1e999", "1" + "0" * 400])
def test_a_result_that_is_not_finite_is_damaged(place: Place, value: str) -> None:
    status = '{"state": "finished", "metric": "loss", "result": {"loss": %s}}'
    (place.runs / "bad" / "status.json").write_text(status % value)
    for reader in ("ls", "status"):
        said = readers(place.runs)[reader]()[1]
        assert "damaged" in said
        assert "Traceback" not in said


def test_a_configuration_that_is_gone(place: Place) -> None:
    (place.runs / "bad" / "config.yaml").unlink()
    assert "damaged: config.yaml" in semaim("ls", str(place.runs))[1]
    code, said = told(place.go_on)
    assert code == 2
    assert "bad/config.yaml is damaged" in said


def test_a_shorter_journal_is_sent_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    journal = place.runs / "bad" / "metrics.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]))
    assert semaim("sync", str(place.runs / "bad"))[0] == 0
    assert "shorter than what was sent" in caplog.text


@pytest.mark.parametrize("kind", OF_BYTES)
def test_a_damaged_picture_is_left_out(place: Place, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(place.runs / "bad")
    Image.new("RGB", (8, 8), "red").save(folder.path / "a.png")
    damage(folder.path / "a.png", kind)
    journal = Journal(folder.journal)
    journal.image("a", 5, "a.png")
    journal.log(9, {"train/loss": 1.0})
    journal.close()
    code, said = semaim("sync", str(folder.path))
    assert (code, caplog.text.count("bad/a.png is damaged")) == (0, 1)
    assert "bad: 1 metric point sent" in said
