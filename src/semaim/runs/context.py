"""Context of a running task: its folder, processes, seed and journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semaim.core.distributed import Processes
from semaim.core.signals import StopRequest
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Evaluated, Journal


@dataclass
class Run:
    """Context of a running task.

    Attributes:
        folder: the run folder.
        config: the resolved configuration, in plain types.
        processes: the process group.
        seed: seed of all random numbers.
        stop: signal handler that records a stop request.
        journal: the journal; None except on the first process.
        choices: the configuration's choice in each group.
        overrides: command-line overrides.
        extends: the finished run whose training this one continues, if it does.
    """

    folder: RunFolder
    config: dict[str, Any]
    processes: Processes
    seed: int
    stop: StopRequest
    journal: Journal | None
    choices: dict[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    extends: RunFolder | None = None

    def log(self, step: int, metrics: Mapping[str, float], of: Evaluated | None = None) -> None:
        """Write metrics of a step to the journal (first process only); `of`: see `Journal.log`."""
        if self.journal is not None and metrics:
            self.journal.log(step, metrics, of)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Write tags of the run to the journal (first process only)."""
        if self.journal is not None and tags:
            self.journal.tags(tags)

    def artifact(self, name: str) -> None:
        """Register a file of the run folder as an artifact (first process only)."""
        if self.journal is not None:
            self.journal.artifact(name)

    def image(self, key: str, step: int, file: str) -> None:
        """Write an image of a step to the journal (first process only).

        Args:
            key: name of the image, such as "pictures/reconstruction".
            step: training step.
            file: path of a PNG, relative to the run folder; one file per step, since delivery is asynchronous.
        """
        if self.journal is not None:
            self.journal.image(key, step, file)
