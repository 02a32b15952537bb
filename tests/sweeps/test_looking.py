"""`semaim status` for everybody: on a terminal, for another user, on a read-only or full disk, into a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from semaim.cli import main
from semaim.core.files import write_json
from semaim.sweeps import commands
from semaim.sweeps.sweep import Point, Sweep
from semaim.sweeps.table import redrawn
from support.commands import ENVIRONMENT
from support.folders import contents
from support.small_disk import small_disk

SIZE = os.terminal_size((20, 6))


def local_sweep(folder: Path, *states: str) -> Sweep:
    """A sweep whose runs have these states; they have no process."""
    points = []
    for number, state in enumerate(states):
        run = folder / f"{number}"
        run.mkdir(parents=True)
        result = {"metric": "loss", "result": {"loss": 0.5}} if state == "finished" else {"error": "an error"}
        write_json(run / "status.json", {"state": state, **result})
        points.append(Point([f"a={number}"], str(run), job="0"))
    sweep = Sweep("local", {}, points, 0, "semaim run -m", path=folder / "sweep")
    sweep.save()
    return sweep


def test_what_is_redrawn_fits_the_terminal() -> None:
    """Each line is cleared to its end, and everything below the last; nothing scrolls."""
    assert redrawn(["a", "b" * 30], (), SIZE) == f"\x1b[Ha\x1b[K\n{'b' * 19}\x1b[K\x1b[J"
    assert redrawn(["a", "b"], (), os.terminal_size((1, 1))) == "\x1b[Ha\x1b[K\x1b[J"
    lines = ["time", "sweep", "header", *(f"{n} finished" for n in range(4)), "4 running", "5 pending", "6 pending"]
    assert redrawn(lines, lines[3:7], SIZE).replace("\x1b[K", "").splitlines() == [
        "\x1b[Htime", "sweep", "header", "4 running", "and 6 lines that do\x1b[J",
    ]  # fmt: skip


def watched(
    monkeypatch: pytest.MonkeyPatch, sweep: Sweep, terminal: bool, *looks: dict[int, dict[str, object]]
) -> list[str]:
    """What is printed, if the status of runs changes before each look but the first."""
    changes, printed = iter(looks), []  # type: ignore[var-annotated]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr("time.strftime", lambda _: "12:00:00")
    monkeypatch.setattr("shutil.get_terminal_size", lambda **_: os.terminal_size((60, 10)))

    def change(_: float) -> None:
        for number, status in next(changes).items():
            write_json(Path(sweep.points[number].run_dir) / "status.json", status)

    monkeypatch.setattr("time.sleep", change)
    monkeypatch.setattr("semaim.sweeps.states._is_local_job", lambda point: point.folder.state() == "vanished")
    commands.watch([sweep.path], printed.append)
    return printed


def running(step: int) -> dict[str, object]:
    return {"state": "running", "step": step, "last_step": 9, "batch_size": 1}


# At the end, what the runs compare to, up to the third word of each line.
RESULTS = [
    ["2", "runs:", "mean"],
    ["a", "train/loss"],
    ["0", "0.5", "(1)"],
    ["1", "0.5", "(1)"],
    ["no", "winner", "by"],
]
DONE: dict[str, object] = {"state": "finished", "metric": "loss", "result": {"loss": 0.5}}


def test_watching_appends_only_changes_of_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = local_sweep(tmp_path, "running", "running")
    looks = ({0: running(1)}, {0: running(2)}, {0: DONE}, {1: DONE})
    first, *rest = watched(monkeypatch, sweep, False, *looks)
    assert first.splitlines()[0] == "12:00:00  2 running"
    assert [line.split()[:3] for line in first.splitlines()[3:]] == [["a=0", "0", "running"], ["a=1", "0", "running"]]
    assert [text.splitlines()[0] for text in rest] == ["12:00:00  1 finished, 1 running", "12:00:00  2 finished"]
    assert [[line.split()[:3] for line in text.splitlines()[1:]] for text in rest] == [
        [["a=0", "0", "finished"]], [["a=1", "0", "finished"], *RESULTS],
    ]  # fmt: skip


def test_watching_redraws_in_place_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = local_sweep(tmp_path, "running")
    shown = watched(monkeypatch, sweep, True, {0: running(1)}, {0: DONE})
    assert len(shown) == 3
    assert all(text.startswith("\x1b[H12:00:00  1 ") and text.endswith("\x1b[J") for text in shown)
    assert all("\x1b[2J" not in text and text.count("\n") == 3 for text in shown)


@pytest.fixture
def of_another_user() -> Iterator[Path]:
    """A folder that others may read; the test is another user, 65534."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_another_user_sees_what_may_be_read(
    of_another_user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = of_another_user
    for module in ("states", "mlflow_parent"):  # `os.access` alone asks for the real user
        monkeypatch.setattr(f"semaim.sweeps.{module}.writable", lambda p: os.access(p, os.W_OK, effective_ids=True))
    sweep = local_sweep(folder, "finished", "failed", "running", "running")
    (folder / "1" / "status.json").chmod(0o600)
    (folder / "2").chmod(0o700)
    other = local_sweep(folder / "more", "failed")
    (other.path / "sweep.json").chmod(0o600)
    before = contents(folder)
    os.seteuid(65534)
    assert main(["status", str(sweep.path), str(other.path)]) == 1
    said = capsys.readouterr()
    rows = [line.split(maxsplit=3)[2:] for line in said.out.splitlines()[2:6]]
    denied = "cannot be read (Permission denied): ask its owner for the permission"
    assert rows == [
        ["finished", "train/loss 0.5"],
        ["unknown", f"{folder}/1/status.json {denied}"],
        ["unknown", f"{folder}/2/status.json {denied}"],
        ["vanished", "its process is gone"],
    ]  # fmt: skip
    assert said.out.splitlines()[-1] == f"{other.path}/sweep.json {denied}"
    assert said.err == ""
    assert main(["ls", str(folder)]) == 0
    listed = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert "2 unknown, 1 finished, 1 vanished" in listed
    assert "unknown: Permission denied" in listed
    os.seteuid(0)
    assert contents(folder) == before


@pytest.mark.parametrize("trouble", ["read-only", "full"])
def test_looking_at_a_disk_that_takes_nothing(tmp_path: Path, trouble: str, capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        sweep = local_sweep(disk, "finished", "running")
        if trouble == "full":
            with suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
                for _ in range(1000):
                    file.write(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for words in (["status", str(sweep.path)], ["status", "--watch", str(sweep.path)]):
            assert main(words) == 1
            said = capfd.readouterr()
            assert [line.split()[2] for line in said.out.splitlines()[-2:]] == ["finished", "vanished"]
            assert "Traceback" not in said.err
            assert trouble == "full" or said.err == ""
        assert main(["ls", str(disk)]) == 0
        assert "1 finished, 1 vanished" in capfd.readouterr().out
        assert (disk / "1" / "status.json").read_text().count('"running"') == 1


@pytest.mark.parametrize("words", [["status", "sweep"], ["status", "nothing"], ["--help"]])
def test_a_closed_pipe_ends_a_command_quietly(tmp_path: Path, words: list[str]) -> None:
    """As of `2>&1 | head -1`, once the reader has ended."""
    local_sweep(tmp_path, "finished")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code = "import os, sys; sys.argv.pop(1) == 'both' and os.dup2(1, 2); from semaim.cli import program; program()"
        for streams in ("both", "output"):
            if streams == "output" and words == ["status", "nothing"]:  # prints only an error
                continue
            done = subprocess.run(
                [sys.executable, "-c", code, streams, *words], cwd=tmp_path, env=ENVIRONMENT, stdout=writer,
                stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (141, b"")
    finally:
        os.close(writer)
