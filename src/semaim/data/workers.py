"""The processes that load batches: their shared memory, their signals, and the end of waiting for them.

A batch passes from a worker to the training process through /dev/shm, which is small in containers.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from semaim.core.distributed import Processes, usable_cpus
from semaim.core.formatting import count
from semaim.core.signals import SIGNALS, StopRequest, can_handle
from semaim.errors import Interrupted, UserError

PREFETCH = 4  # batches that each worker has ready
HELD = 2  # batches that the training process holds: the one in use, and the next
SHARED_MEMORY = "/dev/shm"
POLL_SECONDS = 1.0  # signals and time limits are noticed this often while a batch is awaited
GRACE_SECONDS = 10.0  # wait for a batch after a signal, so that the step can be finished
_started: weakref.WeakSet[Any] = weakref.WeakSet()  # the workers of this process


@dataclass
class Loading:
    """How batches are loaded.

    Attributes:
        num_workers: loading processes per training process, at most the usable CPUs; 0 loads in the training process.
        timeout_seconds: longest wait for a batch.
        image_bytes: size of a transformed image.
        needed: shared memory in bytes, on each node, that training may fill.
    """

    num_workers: int
    timeout_seconds: float
    image_bytes: int
    needed: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a worker has no batch; an exception would bring the worker's traceback as its message."""

    reason: str


class WorkerBatches(Dataset[Any]):
    """Whole batches by the requests for their images. A worker returns them in shared memory, and errors as `Failure`.

    Args:
        dataset: images by request.
        collate: makes a batch of images; the batch has a method `share_memory_`.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitems__(self, requests: list[Any]) -> Any:
        if get_worker_info() is None:
            return self.collate([self.dataset[request] for request in requests])
        try:
            batch = self.collate([self.dataset[request] for request in requests])
        except UserError as error:
            return Failure(str(error))
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Failure(f"images could not be loaded ({what}); data.num_workers=0 shows where it happens")
        try:
            return batch.share_memory_()  # here, because the queue's own thread would drop a batch that does not fit
        except RuntimeError as error:
            return Failure(f"{SHARED_MEMORY} is full ({str(error).split('. ')[0]}): {remedies('the batch size')}")


def remedies(batch_size: str, needed: int | None = None) -> str:
    """What to do about too little shared memory."""
    size = "<size>" if needed is None else f"{-(-needed * 5 // 4 // 2**20)}m"
    return f"lower data.num_workers or {batch_size}, or enlarge it (docker run --shm-size={size})"


def load(
    batches: WorkerBatches,
    requests: Iterable[list[Any]],
    loading: Loading,
    processes: Processes,
    stop: StopRequest,
) -> Iterator[Any]:
    """Batches in the order of their requests.

    Args:
        batches: the batches.
        requests: the images of each batch.
        loading: how they are loaded; its workers' batches fit into shared memory (`fitting`).
        processes: the processes that load at the same time.
        stop: signal handler.
    """
    workers = min(loading.num_workers, usable_cpus())
    loader = DataLoader(
        batches,
        batch_sampler=requests,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=processes.device.type == "cuda",
        worker_init_fn=_init_worker,
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # by default the loader would draw from the global generator
        timeout=POLL_SECONDS if workers else 0,
    )
    # A worker inherits the mask, so that a signal cannot reach it before it is set up. The parent gets its own later.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        loaded = iter(loader)
        _started.update(getattr(loaded, "_workers", ()))
        return Awaited(loaded, loading.timeout_seconds, stop)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _same(batch: Any) -> Any:
    return batch


class NoBatch(BaseException):
    """No batch came in time. As no `Exception`, it is not taken for the reason why the image is unreadable."""


class Awaited(Iterator[Any]):
    """An iterator of batches that does not wait without end.

    Args:
        loaded: the iterator of a DataLoader.
        seconds: longest wait for a batch.
        stop: signal handler.
    """

    def __init__(self, loaded: Any, seconds: float, stop: StopRequest) -> None:
        self.loaded = loaded
        self.seconds = seconds
        self.stop = stop

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            Interrupted: if a signal was received and no batch comes.
            UserError: if no batch comes in time, or the worker could not load it.
        """
        self.left = self.seconds
        try:
            batch = self._from_workers() if hasattr(self.loaded, "_workers") else self._loaded_here()
        except NoBatch:
            if self.stop.requested:
                raise Interrupted(f"stopped by {self.stop.name} while no images came") from None
            raise UserError(
                f"no batch of images came within data.timeout_seconds={self.seconds:g}: is the storage of the data "
                f"reachable? If it is only slow, raise data.timeout_seconds or data.num_workers"
            ) from None
        if isinstance(batch, Failure):
            raise UserError(batch.reason)
        return batch

    def _from_workers(self) -> Any:
        while True:
            try:
                return next(self.loaded)
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
            self._waited(POLL_SECONDS)

    def _loaded_here(self) -> Any:
        if not can_handle():
            return next(self.loaded)
        interval = min(GRACE_SECONDS, self.seconds)
        previous = signal.signal(signal.SIGALRM, lambda *_: self._waited(interval))
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        try:
            return next(self.loaded)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    def _waited(self, seconds: float) -> None:
        """Count the time that a batch is awaited. A clock would go on during Ctrl-Z, or `scontrol suspend`."""
        if self.stop.requested:
            self.left = min(self.left, GRACE_SECONDS)
        self.left -= seconds
        if self.left <= 0:
            raise NoBatch


def fitting(loading: Loading, batch_size: int, option: str, processes: Processes) -> tuple[Loading, str | None]:
    """The same loading with as many workers as shared memory has room for; collective.

    Args:
        loading: as configured.
        batch_size: images per batch of a process.
        option: that sets the batch size.
        processes: the processes that load at the same time.

    Returns:
        the loading with the memory that it needs, and why it has fewer workers than configured, else None.
    """
    workers = min(loading.num_workers, usable_cpus())
    batch = batch_size * loading.image_bytes * processes.on_this_node
    free = min(processes.gather(_free() - loading.needed))  # all have measured before any starts a worker
    fit = (
        workers
        if batch * (PREFETCH * workers + HELD) <= free
        else max(0, int(free // max(batch, 1)) - HELD) // PREFETCH
    )
    needed = batch * (PREFETCH * workers + HELD)
    problem = (
        f"data.num_workers={workers} needs {count(needed, 'B')} of shared memory on each node "
        f"({PREFETCH} x {workers} + {HELD} batches of {count(batch, 'B')}), and {SHARED_MEMORY} has "
        f"{count(max(free, 0), 'B')} left, enough for data.num_workers={fit}: {remedies(option, needed)}"
    )
    return replace(loading, num_workers=fit, needed=needed), None if fit == workers else problem


def _free() -> float:
    """Free bytes of the shared memory; infinite where there is no such file system."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


def _exit_with_parent() -> None:
    """Exit on a SIGTERM from the parent or after its end, even while an image is read.

    The SIGTERM of SLURM, which every process of a job receives during a step, is ignored.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


@atexit.register
def _kill_workers() -> None:
    """Before multiprocessing waits for them without end: some are stopped, or wait for storage, and do not hear it."""
    if alive := [worker for worker in _started if worker.is_alive()]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error
        for worker in alive:
            worker.kill()


def _init_worker(_: int) -> None:
    """Set up a worker: only the parent's SIGTERM stops it, and it uses one thread."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
