"""Time of training steps, and what to do if much of it is spent waiting for images."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch

from semaim.core.distributed import Processes, usable_cpus
from semaim.core.formatting import duration, plural
from semaim.data.image_sets import FileImages
from semaim.data.loading import TrainingData

log = logging.getLogger(__name__)
MUCH, MUCH_SECONDS = 0.1, 30.0  # share of the time, and time, that are worth the advice
ENOUGH_STEPS = 50  # to judge by


@dataclass(frozen=True)
class Pace:
    """Time of some steps.

    Attributes:
        steps: their number.
        seconds: their duration.
        data_wait: seconds of these spent waiting for images.
    """

    steps: int = 0
    seconds: float = 0.0
    data_wait: float = 0.0

    def __add__(self, other: Pace) -> Pace:
        return Pace(self.steps + other.steps, self.seconds + other.seconds, self.data_wait + other.data_wait)

    @property
    def per_step(self) -> float:
        """Seconds per step."""
        return self.seconds / self.steps

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for images."""
        return self.data_wait / self.seconds


class WaitAdvice:
    """Says what to do if training waits much for its images: once after some steps, and at the end.

    Args:
        training: the images.
        processes: of the run.
    """

    def __init__(self, training: TrainingData, processes: Processes) -> None:
        self.training, self.processes = training, processes
        self.pace = Pace()
        self.told = False

    def add(self, pace: Pace, last: bool) -> None:
        """Add steps; `last`: training ends with them."""
        self.pace += pace
        if (self.told and not last) or self.pace.steps < ENOUGH_STEPS:
            return
        if self.pace.wait_share <= MUCH or self.pace.data_wait < MUCH_SECONDS:
            return
        self.told = True
        log.warning(
            "training spent %.0f %% of its time waiting for images (%s in %s): %s",
            100 * self.pace.wait_share, duration(self.pace.data_wait), plural(self.pace.steps, "step"), self.remedy(),
        )  # fmt: skip

    def remedy(self) -> str:
        """What to do, for a message."""
        workers, on_node = self.training.loading.num_workers, self.processes.on_this_node
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK", max(1, usable_cpus() // on_node)))
        if workers < cores:
            parts = [f"set data.num_workers={cores}, the CPU cores of this process (now {workers})"]
        else:
            parts = [f"all {plural(cores, 'CPU core')} of this process load images already: give it more"]
        if self.processes.device.type == "cpu" and (threads := torch.get_num_threads()) > 1:
            parts.append(
                f"on device=cpu {plural(threads, 'thread')} of training share them: try OMP_NUM_THREADS=1, too"
            )
        if isinstance(self.training.images, FileImages):
            parts.append("if the storage or decoding is slow, pack the files with `semaim shard` (docs/data.md)")
        return "; ".join(parts)
