"""Waiting for images ends: too little shared memory, a stuck, dead or faulty worker, a signal."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from torch import Tensor

from semaim.config.messages import explain
from semaim.data import workers
from semaim.data.batches import Batch
from semaim.data.loading import EvaluationImages, StepPlan, TrainingImages, evaluation_batches, training_batches
from semaim.data.transforms import evaluation
from semaim.errors import Interrupted, UserError
from support.commands import ENVIRONMENT, RUN, SMALL
from support.evaluating import noise
from support.loaders import loading
from support.waiting import PATIENCE, wait_for

PLAN = StepPlan(30, 10, 0)


def batches(transform: Callable[[Any], Tensor], processes: int = 2, **how: Any) -> Iterator[Batch]:
    return training_batches(TrainingImages(noise(), transform, 0), PLAN, range(100), *loading(processes, **how))


def stuck(_: Any) -> Tensor:
    time.sleep(PATIENCE)
    raise AssertionError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)


# Shared memory: 10 images of 1000 bytes are a batch, and 2 workers with 4 batches each need 10 batches.


def small(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free // 100, f_frsize=100))


def test_training_says_what_its_workers_need(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 99_900)
    with pytest.raises(UserError) as refused:
        batches(evaluation(8), image_bytes=1000)
    assert str(refused.value) == (
        "data.num_workers=2 needs 100 kB of shared memory on each node (4 x 2 + 2 batches of 10 kB), and /dev/shm has "
        "99.9 kB left, enough for data.num_workers=1: lower data.num_workers or trainer.batch_size, or enlarge it "
        "(docker run --shm-size=1m)"
    )
    small(monkeypatch, 100_000)
    assert len(next(batches(evaluation(8), image_bytes=1000)).labels_B) == 10


@pytest.mark.parametrize(("free", "fewer"), [(100_000, 2), (99_900, 1), (59_000, 0), (0, 0)])
def test_an_evaluation_takes_the_workers_that_fit(
    free: int, fewer: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small(monkeypatch, free)
    images = EvaluationImages(noise(), evaluation(8), range(30))
    with caplog.at_level(logging.WARNING):
        found = evaluation_batches(images, 10, *loading(2, image_bytes=1000))
    assert len(getattr(found.loaded, "_workers", [])) == fewer
    assert [len(batch.labels_B) for batch in found] == [10, 10, 10]
    assert len(caplog.messages) == (fewer < 2)


def test_an_evaluation_leaves_to_training_what_that_may_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 160_000)
    how = loading(2, image_bytes=1000)
    training = training_batches(TrainingImages(noise(), evaluation(8), 0), PLAN, range(100), *how)
    found = evaluation_batches(EvaluationImages(noise(), evaluation(8), range(30)), 10, *how)
    assert (len(training.loaded._workers), len(found.loaded._workers)) == (2, 1)


def test_a_small_file_system_ends_a_run_with_a_message(tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounting a small file system needs root")
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 99; exec "$@"'
    large = ("data.image_size=224", "data.patch_size=16", "trainer.batch_size=64", "data.num_workers=2")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", mount, "small", *RUN, *SMALL, *large],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    if done.returncode in (1, 99) and "semaim" not in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 2, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    for part in ("data.num_workers=", "trainer.batch_size", "--shm-size=", "/dev/shm has 67.1 MB left"):
        assert part in message


def test_a_full_shared_memory_is_told_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Batch) -> Batch:
        raise RuntimeError("unable to allocate: No space left on device (28). More")

    monkeypatch.setattr(Batch, "share_memory_", full)
    with pytest.raises(UserError, match=r"^/dev/shm is full \(unable to allocate: No space .*--shm-size=<size>\)$"):
        next(batches(evaluation(8)))


# Workers


@pytest.mark.parametrize("processes", [0, 2])
def test_a_batch_that_does_not_come_ends_the_run(processes: int) -> None:
    with pytest.raises(UserError, match=r"no batch of images came within data.timeout_seconds=0.3: "):
        next(batches(stuck, processes, seconds=0.3))


@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_is_heard_while_no_images_come(processes: int) -> None:
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM while no images came$"):
        next(batches(stuck, processes, stopped_by="SIGTERM"))


def test_a_pause_of_all_processes_is_no_wait() -> None:
    class Loaded:
        _workers = ()
        paused = False

        def __next__(self) -> str:
            if self.paused:
                return "batch"
            self.paused = True
            time.sleep(0.2)  # as by Ctrl-Z
            raise RuntimeError("DataLoader timed out after 0.05 seconds")

    assert next(workers.Awaited(Loaded(), 0.15, loading(2)[2])) == "batch"


def test_a_stopped_worker_does_not_keep_the_program_from_its_end() -> None:
    loaded = batches(stuck).loaded
    worker = loaded._workers[0]
    os.kill(worker.pid, signal.SIGSTOP)
    handler = signal.getsignal(signal.SIGCHLD)
    workers._kill_workers()
    worker.join(PATIENCE)
    signal.signal(signal.SIGCHLD, handler)
    assert worker.exitcode == -signal.SIGKILL


def test_after_a_signal_a_batch_that_comes_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_SECONDS", PATIENCE)
    assert len(next(batches(evaluation(8), stopped_by="SIGTERM")).labels_B) == 10


def test_a_busy_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    if (parent := os.fork()) == 0:
        loaded = batches(stuck)
        (tmp_path / "worker").write_text(str(loaded.loaded._workers[0].pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    worker = int((tmp_path / "worker").read_text())
    wait_for(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie", "its end")


def test_an_error_in_a_worker_is_one_line() -> None:
    def faulty(_: Any) -> Tensor:
        raise ZeroDivisionError("first line\nsecond line")

    with pytest.raises(UserError) as told:
        next(batches(faulty))
    fault = "ZeroDivisionError: first line second line"
    assert re.fullmatch(
        rf"the augmentation \(data\.train_transform, .*\) fails on 'noise\[\d+\]': {fault}", str(told.value)
    )


def test_a_killed_worker_is_named_in_one_line() -> None:
    before = set(psutil.Process().children())
    loaded = batches(stuck)
    worker = (set(psutil.Process().children()) - before).pop()
    worker.kill()
    with pytest.raises(RuntimeError) as told:
        next(loaded)
    message = explain(told.value)
    assert message is not None
    assert str(worker.pid) in message
    assert "data.num_workers" in message
    assert "\n" not in message


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL], ids=lambda number: number.name)
def test_the_kind_of_death_is_told(number: signal.Signals) -> None:
    died = (
        f"DataLoader worker (pid 12) is killed by signal: {signal.strsignal(number)}. It is possible that shm is low."
    )
    assert str(explain(RuntimeError(died))).startswith(
        f"a process that loads images is killed by signal: {signal.strsignal(number)} (pid 12): "
    )
