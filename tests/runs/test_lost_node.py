"""A restarted job whose run folder is held by its earlier start, on a node that SLURM has lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from semaim import lifecycle
from semaim.config.messages import EXIT_HELD, print_error
from semaim.core import locks
from semaim.errors import Interrupted, InUse, StillInUse, TakenOver
from semaim.lifecycle import _lock
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from support.holding import holding

# Works on a folder until it is told that another process has it.
OLD = """
import sys, time
from pathlib import Path
from semaim.errors import TakenOver
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
journal = Journal(folder.journal, folder.check_kept)
for step in range(100_000):
    try:
        journal.log(step, {"loss": 1.0})
    except TakenOver as error:
        print(step, error, flush=True)
        break
    if step == 0:
        print("locked", flush=True)
    time.sleep(0.05)
"""


class Heard:
    """A handler that has received a signal, or none."""

    def __init__(self, name: str | None = None) -> None:
        self.name, self.requested = name, name is not None


def restart(monkeypatch: pytest.MonkeyPatch, number: int, job: str = "12") -> None:
    """This process and its children are of the n-th restart of a job."""
    for name, value in {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(number)}.items():
        monkeypatch.setenv(name, value)


def test_the_earlier_start_ends_before_it_writes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restart(monkeypatch, 0)
    command = [sys.executable, "-c", OLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "locked\n"
        restart(monkeypatch, 1)
        folder = RunFolder(tmp_path)
        _lock(folder, Heard())  # type: ignore[arg-type]
        written = folder.journal.read_bytes()
        said = old.stdout.read()
    assert f"{tmp_path} belongs to process {os.getpid()} on " in said
    assert " (job 12, restart 1) now: this process writes no more to it and ends\n" in said
    assert written.count(b"\n") == int(said.split()[0]), "the step after the last written one was refused"
    assert folder.journal.read_bytes() == written
    assert locks.awaited(tmp_path / ".lock") == ""  # closes the file, and with it the lock: last


def test_waiting_is_bounded_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restart(monkeypatch, 0)
    with holding(tmp_path) as old:
        restart(monkeypatch, 1)
        monkeypatch.setattr(lifecycle, "WAIT_FOR_LOCK_SECONDS", 0.5)
        who = rf"process {old.pid} on \S+ \(job 12, restart 0\)"
        with pytest.raises(StillInUse, match=rf"is in use by {who}: wait") as got:
            _lock(RunFolder(tmp_path), Heard())  # type: ignore[arg-type]
        assert print_error(got.value) == EXIT_HELD == 69
        assert re.fullmatch(who, locks.awaited(tmp_path / ".lock"))
        with pytest.raises(Interrupted, match="stopped by SIGUSR2 while the run folder"):
            _lock(RunFolder(tmp_path), Heard("SIGUSR2"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("ours", "number"), [("12", 0), ("13", 1)])
def test_only_a_restart_of_the_same_job_claims_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str, number: int
) -> None:
    restart(monkeypatch, 0)
    with holding(tmp_path):
        note = (tmp_path / ".lock").read_text()
        restart(monkeypatch, number, ours)
        with pytest.raises(InUse):
            RunFolder(tmp_path).lock()
        assert (tmp_path / ".lock").read_text() == note


def test_a_process_that_has_lost_its_lock_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server gives a lock to another node when the first one does not answer for some time."""
    restart(monkeypatch, 0)
    folder = RunFolder(tmp_path)
    folder.lock()
    journal = Journal(folder.journal, folder.check_kept)
    journal.log(1, {"loss": 1.0})
    (tmp_path / ".lock").write_text("process 1 on n2 (job 12, restart 1)")
    with pytest.raises(TakenOver, match=r"belongs to process 1 on n2 \(job 12, restart 1\) now"):
        journal.log(2, {"loss": 1.0})
    with pytest.raises(TakenOver):
        folder.set_status("finished")
    assert folder.journal.read_text().count("\n") == 1
    folder.unlock()
