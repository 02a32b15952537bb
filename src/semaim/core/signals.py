"""Leaving in good order: signals ask the training loop to stop after the step in flight."""

from __future__ import annotations

import signal
from types import FrameType

from semaim.core.distributed import Processes
from semaim.core.slurm_job import is_being_requeued, this_job

# SIGUSR2 is what SLURM sends a job of ours before its time is up, SIGTERM what it sends when it takes the nodes away.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Becomes true at the first of these signals; a second SIGINT (Ctrl-C) interrupts at once.

    Attributes:
        name: the signal's.
        previous: the handlers that were there before; for SIGUSR2 submitit's, which requeues the job.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name is not None:
            raise KeyboardInterrupt
        if self.name != "SIGUSR2":  # SIGTERM follows it where the time is up
            self.name = signal.Signals(number).name

    def agree(self, processes: Processes) -> str | None:
        """The signal's name on all processes, whichever of them got it, None if none did; all call this together."""
        names = [name for name in processes.gather(self.name) if name is not None]
        if names:
            self.name = "SIGUSR2" if "SIGUSR2" in names else names[0]
        return self.name

    def job_starts_again(self) -> bool:
        """Whether SLURM will start this job again by itself: at its time limit, or when others need the nodes."""
        if not this_job():
            return False
        if self.name == "SIGUSR2":
            return callable(self.previous[signal.SIGUSR2])
        return self.name == "SIGTERM" and is_being_requeued()

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
