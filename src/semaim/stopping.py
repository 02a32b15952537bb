"""Leaving in good order: signals ask the training loop to stop after the step in flight."""

from __future__ import annotations

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Becomes true at the first SIGINT, SIGTERM or SIGUSR1; a second SIGINT (Ctrl-C) interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
