"""What a task is given to run in: its folder, its processes, its seed, and where to write metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semaim.core.distributed import Processes
from semaim.core.signals import StopRequest
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal


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
        choices: the configuration's choice in each group.
        overrides: what the command line said.
        quiet: whether training says nothing of its steps on the screen.
    """

    folder: RunFolder
    config: dict[str, Any]
    processes: Processes
    seed: int
    stop: StopRequest
    journal: Journal | None
    choices: dict[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    quiet: bool = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step to the journal (first process only)."""
        if self.journal is not None and metrics:
            self.journal.log(step, metrics)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Say what the run is to be found by (first process only)."""
        if self.journal is not None and tags:
            self.journal.tags(tags)

    def artifact(self, name: str) -> None:
        """Show a file of the run folder beside the metrics (first process only)."""
        if self.journal is not None:
            self.journal.artifact(name)

    def image(self, key: str, step: int, file: str) -> None:
        """Show a picture of a step beside those of other steps (first process only).

        Args:
            key: what it shows, such as "pictures/reconstruction".
            step: of training.
            file: a PNG in the run folder, by its path from there; one for each step, since it is sent later.
        """
        if self.journal is not None:
            self.journal.image(key, step, file)
