"""Graceful shutdown: on a signal, the training loop stops after the current step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING

from semaim.core.slurm_job import is_being_requeued, this_job

if TYPE_CHECKING:  # imports torch
    from semaim.core.distributed import Processes

# SLURM sends SIGUSR2 to a semaim job before its time limit, and SIGTERM when it preempts or cancels the job.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Handler of `SIGNALS` that records the first one; a second SIGINT (Ctrl-C) interrupts at once.

    Attributes:
        name: name of the received signal, or None.
        previous: the previous handlers; for SIGUSR2 submitit's, which requeues the job.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.name is not None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.name is not None:
            raise KeyboardInterrupt
        if self.name != "SIGUSR2":  # at the time limit, SIGTERM follows SIGUSR2
            self.name = signal.Signals(signum).name

    def agree(self, processes: Processes) -> str | None:
        """Share the received signal among all processes; collective.

        Returns:
            the signal's name, the same on every process; None if no process received one.
        """
        names = [name for name in processes.gather(self.name) if name is not None]
        if names:
            self.name = "SIGUSR2" if "SIGUSR2" in names else names[0]
        return self.name

    def will_be_requeued(self) -> bool:
        """Whether SLURM will restart this job: after its time limit, or after a preemption."""
        if not this_job():
            return False
        if self.name == "SIGUSR2":
            return callable(self.previous[signal.SIGUSR2])
        return self.name == "SIGTERM" and is_being_requeued()

    def restore(self) -> None:
        """Restore the previous handlers."""
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
