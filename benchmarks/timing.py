"""Durations on a CPU or a GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch._C._autograd import DeviceType


class Marks:
    """Durations of the phases of an action, which calls this object with the name of each phase at its end.

    On a GPU, these are times in its queue, without waiting for it; on a CPU, times of the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self("start")

    def __call__(self, phase: str) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((phase, event))
        else:
            self.marks.append((phase, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """Durations by phase, summed over phases of one name; the device must have finished."""
        total: dict[str, float] = defaultdict(float)
        for (_, begin), (phase, end) in zip(self.marks, self.marks[1:], strict=False):
            total[phase] += begin.elapsed_time(end) if self.cuda else (end - begin) * 1e3
        return dict(total)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Duration of an action until the device has finished it."""
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started


def alternating(
    actions: Mapping[str, Callable[[], Any]], device: torch.device, warmup: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every repeat of each action; the actions take turns, so that load and clock affect them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for index in range(warmup + repeats):
        for name, action in actions.items():
            duration = seconds_of(action, device)
            if index >= warmup:
                seconds[name].append(duration)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """How many times as fast the second is: ratio of the medians, and the spread of the ratios of single rounds."""
    rounds = [s / f for s, f in zip(slower, faster, strict=True)]
    return {"median": median(slower) / median(faster), "lowest": min(rounds), "highest": max(rounds)}


def busy_seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Time that the kernels of an action take on a GPU. What an action takes longer is time without work for it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        action()
        synchronise(device)
    kernels = [e for e in profile.events() or [] if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(e.time_range.elapsed_us() for e in kernels) / 1e6
