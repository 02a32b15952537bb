"""Helpers for evaluation tests: the `Run` of a task, small image sets, processes simulated by threads."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semaim.checkpoints.encoder_source import Origin
from semaim.core.distributed import Processes
from semaim.core.signals import SIGNALS, StopRequest
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ArrayImages, Splits
from semaim.data.pixels import Transform
from semaim.data.transforms import evaluation, pretraining
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from support.waiting import PATIENCE

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


@contextmanager
def surroundings(folder: Path) -> Iterator[Run]:
    """A `Run` for one process; signal handlers are installed and restored at exit."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    try:
        yield Run(RunFolder(folder), {}, ALONE, 5, stop, None)
    finally:
        stop.restore()
        assert {number: signal.getsignal(number) for number in SIGNALS} == previous


def image_data(
    splits: Splits,
    workers: int = 0,
    max_unreadable: int = 3,
    transform: Transform | None = None,
    val_fraction: float | None = None,
    val_seed: int = 0,
) -> ImageData:
    """Images of 8x8 pixels with 4x4 patches."""
    transform = transform or evaluation(8, crop_ratio=1.0)
    train = pretraining(8)
    return ImageData(
        lambda: splits, None, 8, 4, train, transform, workers, PATIENCE, max_unreadable, val_fraction, val_seed
    )


def noise(count: int = 30, seed: int = 0) -> ArrayImages:
    """Noise images of three alternating classes."""
    pixels_NHWC = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3))
    return ArrayImages(pixels_NHWC, [i % 3 for i in range(count)], "noise")


@dataclass(frozen=True)
class Thread(Processes):
    """A process simulated by a thread; exchanged values are pickled, as between real processes."""

    sent: list[bytes] = field(default_factory=list)
    all_here: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def gather(self, value: Any) -> list[Any]:
        self.sent[self.rank] = pickle.dumps(value)
        self.all_here.wait()
        values = [pickle.loads(sent) for sent in self.sent]
        self.all_here.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def barrier(self) -> None:
        self.all_here.wait()


def together(world_size: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Run the same work in several simulated processes; return results by rank. The first error stops all."""
    sent, all_here = [b""] * world_size, threading.Barrier(world_size, timeout=PATIENCE)
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def play(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, world_size, CPU, 1, sent, all_here))
        except threading.BrokenBarrierError:  # another thread has failed
            pass
        except BaseException as error:
            errors.append(error)
            all_here.abort()

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert not all_here.broken
    return results


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    """Two nested states hold bit-identical numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_bits(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


class Source:
    """An encoder source without a file."""

    checkpoint, path = "somewhere", None

    def __init__(self, vit: Any, data: Any = None) -> None:
        self.vit = vit
        self.data = data

    def encoder(self) -> Any:
        return self.vit

    def origin(self, seed: int, choices: Any) -> Origin:
        return Origin({"pretrained.run": "x"}, {"pretrained/epochs": 2.0}, 12, self.data)
