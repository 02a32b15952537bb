"""Progress output of a run: one updating line on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from contextlib import suppress
from textwrap import indent
from typing import Any

from semaim.core.formatting import printable

log = logging.getLogger(__name__)
LINES = {"lines": True}


class StatusLine:
    """A status line.

    Args:
        shown: False on processes other than the first.
        every: interval between logged updates where standard error is not a terminal.
    """

    def __init__(self, shown: bool, every: int = 1) -> None:
        self.shown = shown
        self.every = max(1, every)
        self.terminal = sys.stderr.isatty()
        self._updates = 0
        self._drawn = 0.0

    def update(self, text: str, last: bool = False) -> None:
        """Show a text; `last` ends the line, so that it stays visible."""
        if not self.shown:
            return
        self._updates += 1
        if not self.terminal:
            if last or self._updates % self.every == 0:
                log.info(text)
            return
        if last or time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            with suppress(OSError):  # the terminal is closed
                width = shutil.get_terminal_size().columns - 1  # a longer line could not be erased
                sys.stderr.write(f"\r\x1b[2K{text if last else text[:width]}" + ("\n" if last else ""))
                sys.stderr.flush()


class LineFormatter(logging.Formatter):
    """Formatter that writes each message in one line, unless it is logged with `extra=LINES`; tracebacks are indented.

    Names of files in messages may hold any character (see `printable`).
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record), keep="\n" if hasattr(record, "lines") else "")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return indent(printable(super().formatException(ei), keep="\n"), "  ")


class ScreenHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Stream handler that erases the status line before it writes a record."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the terminal is closed
            if self.stream.isatty():
                self.stream.write("\r\x1b[2K")
        super().emit(record)


def show_logs(to_screen: bool) -> None:
    """Show this package's log messages on standard error; errors only unless `to_screen`."""
    handler = ScreenHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("semaim")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if to_screen else logging.ERROR)
    logger.propagate = False
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # says at its first use that it lists fonts
    logging.getLogger("timm").setLevel(logging.WARNING)  # semaim.checkpoints logs how weights are fitted
