"""What a person sees while a run computes: one line that renews itself on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger(__name__)


class StatusLine:
    """A status line.

    Args:
        shown: False on processes other than the first.
        every: on something that is not a terminal, log every so many updates.
    """

    def __init__(self, shown: bool, every: int = 1) -> None:
        self.shown = shown
        self.every = max(1, every)
        self.terminal = sys.stderr.isatty()
        self._updates = 0
        self._drawn = 0.0

    def update(self, text: str, last: bool = False) -> None:
        """Show the newest text; `last` also leaves it standing."""
        if not self.shown:
            return
        self._updates += 1
        if not self.terminal:
            if last or self._updates % self.every == 0:
                log.info(text)
            return
        if last or time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
            sys.stderr.flush()


class ScreenHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Logs to the screen, first wiping a status line that stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream.isatty():
            self.stream.write("\r\x1b[2K")
        super().emit(record)


def show_logs(to_screen: bool) -> None:
    """Send this package's log messages to the screen (on the first process), or warnings alone."""
    handler = ScreenHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("semaim")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if to_screen else logging.ERROR)
    logger.propagate = False
    logging.getLogger("huggingface_hub").propagate = False  # it shows what it has to say itself
    logging.getLogger("timm").setLevel(logging.WARNING)  # how it fits weights is told here, where they are kept
