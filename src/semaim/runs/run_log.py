"""The file `run.log` of a run: what is logged while it runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semaim.core.files import writing
from semaim.core.terminal import LineFormatter

log = logging.getLogger("semaim")


class RunLog(logging.FileHandler):
    """Appends to run.log. A full disk does not end the run: the lines are then only on the screen."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Write no further lines, and say so once."""
        log.removeHandler(self)
        log.warning("%s cannot be written: what follows is only shown here", self.baseFilename)


@contextmanager
def logged_to(path: Path) -> Iterator[RunLog]:
    """Append this package's log to a file during a block.

    Raises:
        CannotWrite: if the file cannot be opened.
    """
    with writing(path):
        handler = RunLog(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # the disk is full, which was said
            handler.close()
