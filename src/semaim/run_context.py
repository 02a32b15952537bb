"""What a task is given to run in: its folder, its processes, its seed, and where to write metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semaim.distributed import Processes
from semaim.journal import Journal
from semaim.runfolder import RunFolder
from semaim.stopping import StopRequest


@dataclass
class Run:
    """The surroundings of a task.

    Attributes:
        folder: the run folder.
        config: the resolved configuration, in plain types.
        processes: this process among all.
        seed: of everything random.
        stop: whether a signal asked to stop.
        journal: on the first process, else None.
    """

    folder: RunFolder
    config: dict[str, Any]
    processes: Processes
    seed: int
    stop: StopRequest
    journal: Journal | None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step to the journal (first process only)."""
        if self.journal is not None and metrics:
            self.journal.log(step, metrics)
