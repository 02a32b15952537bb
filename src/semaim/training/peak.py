"""The peak of a device: how fast it multiplies large matrices, measured once per machine and kept in a file."""

from __future__ import annotations

import functools
import math
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.core.cache_folder import cache_folder
from semaim.core.files import read_json, write_json
from semaim.core.formatting import count, plural
from semaim.errors import UserError
from semaim.training.settings import PRECISIONS, TrainerSettings

SMALLEST, LARGEST = 256, 8192  # sides of the square matrices
LONG_ENOUGH = 0.02  # seconds of a round: the clock, and the launch of kernels, no longer matter
ROUNDS = 7
UNDISTURBED = 0.9  # share of the time of its processor cores that a measurement to keep has had
FILE = "peaks.json"


@dataclass(frozen=True)
class Peak:
    """Speed of large matrix products, to which `train/mfu` refers.

    Attributes:
        flops: floating-point operations per second.
        device: what it was measured on.
        precision: of the factors: bf16, fp16, float32, or tf32 where a GPU may round float32 (torch's setting).
        measured: the day, as 2026-11-28.
        file: where it is kept; None if that was not possible.
        disturbed: whether other programs used the same processor cores, so that it may be too low and is not kept.
    """

    flops: float
    device: str
    precision: str
    measured: str
    file: Path | None
    disturbed: bool = False

    def __str__(self) -> str:
        return f"{count(self.flops, 'FLOP/s')} on {self.device} in {self.precision}, measured {self.measured}"

    @property
    def kept(self) -> str:
        """Where it is kept, for messages."""
        if self.disturbed:
            return "not kept, since other programs used the same processor cores"
        if self.file is None:
            return "not kept, since there is no cache folder"
        home = os.path.expanduser("~")
        return f"kept in {re.sub(f'^{re.escape(home)}(?=/)', '~', str(self.file))}"


class Speed(NamedTuple):
    """A measured speed.

    Attributes:
        flops: floating-point operations per second.
        undisturbed: share of the time of its processor cores that the measurement has had; 1 on a GPU.
    """

    flops: float
    undisturbed: float


class _Stored(TypedDict):
    flops: float
    measured: str


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of a device: that of an earlier run on the same kind of machine, else it is measured now.

    A measurement takes about a third of a second on a CPU, less than a second on a GPU. It neither uses nor changes the
    random state.

    Args:
        device: of this process. A CPU counts with the threads that this process uses.
        dtype: of matrix products.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    precision = next(name for name, each in PRECISIONS.items() if each == dtype)
    return _peak(device, "tf32" if tf32 and precision == "float32" else precision, threads)


@functools.cache
def _peak(device: torch.device, precision: str, threads: int) -> Peak:
    name = f"{processor()} with {plural(threads, 'thread')}" if threads else torch.cuda.get_device_name(device)
    key, file = _key(name, precision), cache_file()
    stored = _read(file).get(key)
    if stored is not None and math.isfinite(stored["flops"]) and stored["flops"] > 0:
        return Peak(stored["flops"], name, precision, stored["measured"], file)
    speed, today = measure(device, PRECISIONS.get(precision, torch.float32)), time.strftime("%Y-%m-%d")
    if speed.undisturbed < UNDISTURBED:
        return Peak(speed.flops, name, precision, today, None, disturbed=True)
    return Peak(speed.flops, name, precision, today, _keep(file, key, _Stored(flops=speed.flops, measured=today)))


def _key(name: str, precision: str) -> str:
    """What a peak is kept under: the device, the precision and the version of torch, whose kernels decide."""
    return f"{name}, {precision}, torch {torch.__version__}"


def forget(found: Peak) -> None:
    """Have a peak measured again at the next start, since it turned out to be too low."""
    _peak.cache_clear()
    kept, wrong = _read(found.file), _Stored(flops=found.flops, measured=found.measured)
    if found.file is None or kept.pop(_key(found.device, found.precision), None) != wrong:
        return  # it is not kept, or was measured again meanwhile
    with suppress(OSError, UserError):
        write_json(found.file, kept)


def training_peak(trainer: TrainerSettings, device: torch.device) -> Peak:
    """The peak of a device for the matrix products of training."""
    with trainer.matrix_products(device):
        return peak(device, trainer.dtype(device))


def cache_file() -> Path | None:
    """The file of all peaks, in the user's cache folder; None if there is none."""
    folder = cache_folder()
    return folder and folder / FILE


def _read(file: Path | None) -> dict[str, _Stored]:
    """The stored peaks; none from a file that is damaged or not readable, which is then written anew."""
    with suppress(UserError):
        return (file and read_json(file, dict[str, _Stored])) or {}
    return {}


def _keep(file: Path | None, key: str, stored: _Stored) -> Path | None:
    """Store a peak beside the others; None where this is not possible: then each start measures.

    Of two processes that write at the same time the later one wins, and the other's peak is measured again some day.
    """
    with suppress(OSError, UserError):
        if file is not None:
            write_json(file, _read(file) | {key: stored})
            return file
    return None


def processor() -> str:
    """The model of the processor."""
    with suppress(OSError):
        if found := re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine() or "CPU"


def measure(device: torch.device, dtype: torch.dtype) -> Speed:
    """Speed of a square matrix product, in the fastest of some rounds after a warm-up.

    Not the mean or the median, since other work of the machine slows rounds down, and the result is kept for long.
    The matrices are the largest, up to LARGEST, whose product takes no more than about four times LONG_ENOUGH.
    """
    size, product = SMALLEST, _product(SMALLEST, device, dtype)
    while (seconds := _elapsed(product, 1, device)) < LONG_ENOUGH / 2 and size < LARGEST:
        size *= 2
        product = _product(size, device, dtype)
    repeats = max(1, round(LONG_ENOUGH / seconds))
    began, used = time.perf_counter(), time.process_time()
    shortest = min(_elapsed(product, repeats, device) for _ in range(ROUNDS)) / repeats
    had = (time.process_time() - used) / (time.perf_counter() - began) / torch.get_num_threads()
    if device.type == "cuda":
        del product
        torch.cuda.empty_cache()  # training has all of the memory
    return Speed(2 * size**3 / shortest, 1.0 if device.type == "cuda" else had)


def _product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """A matrix product. Random numbers, since GPUs multiply ones faster: they need less power."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)  # warm-up
    return functools.partial(torch.mm, a, b, out=out)


def _elapsed(product: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        product()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
