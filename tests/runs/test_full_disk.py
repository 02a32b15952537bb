"""A full disk at each stage of a run is one message; nothing is lost, and looking at runs works."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from semaim.checkpoints import store
from semaim.config.messages import explain
from semaim.core import files
from semaim.evaluation import feature_cache
from semaim.evaluation.feature_cache import cached_features
from semaim.lifecycle import execute, session
from semaim.runs import journal, run_log
from semaim.runs.folder import RunFolder
from semaim.training import loop
from support.caching import Encoder, wanted
from support.commands import SMALL
from support.damaging import semaim, told
from support.evaluating import noise
from support.in_process import job
from support.small_disk import small_disk

STAGES = ("config.yaml", "environment.json", "status.json", "metrics.jsonl", "step_00000001.pt", "evaluations.json")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the disk full for files of a name: what is opened for writing is /dev/full."""

    def fill(name: str) -> None:
        def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            to_full = Path(path).name.startswith(name) and not mode.startswith("r")
            return open("/dev/full" if to_full else path, mode, *args, **kwargs)

        for module in (files, journal, feature_cache):
            monkeypatch.setattr(module, "open", opened, raising=False)
        if name == "run.log":
            monkeypatch.setattr(run_log.RunLog, "_open", lambda _: open("/dev/full", "w"))  # noqa: SIM115 - as logging does

    return fill


def command(folder: Path, *more: str) -> Callable[[], None]:
    spec = job(*SMALL, f"runs_dir={folder}", "run_name=run", "trainer.max_steps=1", *more)

    def run() -> None:
        with session("cpu") as (processes, stop):
            execute(spec, processes, stop)

    return run


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_at_each_stage(tmp_path: Path, full: Callable[[str], None], name: str, monkeypatch) -> None:
    run = command(tmp_path, *(["evaluators=[knn]"] if name == "evaluations.json" else []))
    full(name)
    code, said = told(run)
    assert code == 1, said
    assert said.count("No space left on device") == 1
    assert f"/{name} cannot be written (No space left on device): make room" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp"))
    for words in (["ls", tmp_path], ["status", tmp_path / "run"]):
        if name != "config.yaml":
            assert "Traceback" not in (said := semaim(*map(str, words))[1])
            assert "run" in said
    monkeypatch.undo()
    assert told(run)[0] == 0
    assert RunFolder(tmp_path / "run").status()["state"] == "finished"


def test_a_folder_that_is_renamed_during_training_is_not_made_again(tmp_path: Path, monkeypatch) -> None:
    def renamed(*_: Any) -> bool:
        (tmp_path / "run").rename(tmp_path / "other")
        return True

    monkeypatch.setattr(loop, "checkpoint_is_due", renamed)
    code, said = told(command(tmp_path, "trainer.max_steps=2"))
    assert code == 1
    assert "/run cannot be written (it was deleted or renamed during the run): restore it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_run_log_is_not_required(tmp_path: Path, full: Callable[[str], None]) -> None:
    full("run.log")
    code, said = told(command(tmp_path))
    assert code == 0
    assert said.count("run.log cannot be written") == 1


def test_half_a_line_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = journal.Journal(tmp_path / "metrics.jsonl")
    lines.log(1, {"a": 1.0})

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.fileno, self.truncate, self.close = file, file.fileno, file.truncate, file.close
            self.written = 0

        def write(self, content: bytes) -> int:
            self.written += 1
            if self.written > 1:
                raise OSError(28, os.strerror(28))
            return int(self.file.write(content[:5]))

    before = (tmp_path / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(lines, "_file", Full(lines._file))
        with pytest.raises(files.CannotWrite, match=r"metrics\.jsonl cannot be written \(No space left on device\)"):
            lines.log(2, {"a": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    lines.log(2, {"a": 2.0})
    lines.close()
    assert [line["step"] for _, line in journal.read(tmp_path / "metrics.jsonl", 0)] == [1, 2]


def test_a_full_disk_for_cached_features(run, tmp_path: Path, full: Callable[[str], None]) -> None:
    full("0.cls.raw")
    with pytest.raises(files.CannotWrite, match=r"0\.cls\.raw cannot be written \(No space left on device\)"):
        cached_features(tmp_path / "kept", "weights", wanted(Encoder(), noise()), run)
    assert not list((tmp_path / "kept").iterdir())


# A real disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with small_disk(tmp_path / "disk", "4m") as place:
        yield place


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 4, 5, 6, 8, 100])
def test_a_disk_with_some_pages_left(disk: Path, pages: int) -> None:
    run = command(disk)
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * (free.f_bavail - pages) * free.f_frsize)
    code, said = told(run)
    assert code == 1, said
    assert said.count("No space left on device") >= 1
    assert "Traceback" not in said
    assert not list(disk.rglob("*.tmp"))
    for words in (["ls", disk], ["status", disk / "run"], ["rm", "--yes", disk / "run"]):
        code, said = semaim(*map(str, words))
        assert "Traceback" not in said
        assert words[0] != "ls" or code == 0
    (disk / "filler").unlink()
    assert told(run)[0] == 0


def test_a_disk_that_cannot_be_written(disk: Path) -> None:
    assert told(command(disk))[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "finished" in semaim("ls", str(disk))[1]
    code, said = semaim("status", str(disk / "run"))
    assert code == 0
    assert "finished  train/loss" in said
    for words in (["rm", "--yes", str(disk / "run")], ["sync", str(disk / "run"), "--uri", "sqlite:////nowhere/a.db"]):
        code, said = semaim(*words)
        assert code in (1, 2)
        assert said.count("Read-only file system") == 1
        assert "Traceback" not in said


# Folders of other users


@pytest.fixture
def shared() -> Iterator[Path]:
    """A finished run of another user; this process is user 65534 during the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        assert told(command(folder))[0] == 0
        semaim("status", str(folder / "run"))  # imports everything that another user may not read
        semaim("sync", str(folder / "run"), "--uri", f"sqlite:///{folder}/mlflow.db")
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_a_finished_run_of_another_user(shared: Path) -> None:
    code, said = semaim("status", str(shared / "run"))
    assert (code, "finished  train/loss" in said) == (0, True)
    assert "finished  train/loss" in semaim("ls", str(shared))[1]
    for words in (["rm", "--yes", "--keep-mlflow", str(shared / "run")], ["sync", str(shared / "run")]):
        code, said = semaim(*words)
        assert code in (1, 2)
        assert said.count("Permission denied") == 1
        assert "Traceback" not in said
    assert (shared / "run" / "status.json").is_file()


def test_a_live_run_of_another_user_is_seen_as_such(shared: Path) -> None:
    os.seteuid(0)
    RunFolder(shared / "run").set_status("running", step=1, last_step=9, batch_size=1)
    os.seteuid(65534)
    said = semaim("status", str(shared / "run"))[1]
    assert "vanished" in said  # no process holds the lock
    assert RunFolder(shared / "run").status()["state"] == "running"  # and nothing was written


def test_a_closed_folder_of_another_user(shared: Path) -> None:
    os.seteuid(0)
    (shared / "closed").mkdir(mode=0o700)
    os.seteuid(65534)
    said = semaim("ls", str(shared))[1]
    assert "unknown: Permission denied" in said
    assert re.search("finished +train/loss", said)
    code, said = semaim("status", str(shared / "closed"))
    assert (code, said.count("\n")) == (2, 1)
    assert "closed/sweep.json: Permission denied" in said


def test_checkpoints_that_another_user_may_not_list_are_not_said_to_be_missing(shared: Path) -> None:
    os.seteuid(0)
    (shared / "run" / "checkpoints").chmod(0o700)
    os.seteuid(65534)
    assert "finished  train/loss" in semaim("ls", str(shared))[1]
    with pytest.raises(PermissionError) as told:
        store.list_steps(shared / "run" / "checkpoints")
    assert explain(told.value) == f"{shared}/run/checkpoints: Permission denied"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_holds_for_all_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
        more = ["evaluators=[knn,pictures]", "task.evaluators.pictures.images=2", "task.evaluators.pictures.drawn=1"]
        assert told(command(tmp_path / "runs", "tracking=mlflow", tracking, *more))[0] == 0
    finally:
        os.umask(before)
    kept = list((tmp_path / "runs").rglob("*"))
    assert {".lock", "run.log", "metrics.jsonl", "status.json", "mlflow.json"} <= {path.name for path in kept}
    assert {oct(path.stat().st_mode & 0o777) for path in kept if path.is_file()} == {oct(mode)}
    assert {oct(path.stat().st_mode & 0o777) for path in kept if path.is_dir()} == {oct(0o777 & ~umask)}
