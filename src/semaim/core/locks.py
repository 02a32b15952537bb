"""A lock on a file, for work that processes share: the first does it, the others wait for a bounded time."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from semaim.core.formatting import duration, quoted
from semaim.errors import UserError

log = logging.getLogger(__name__)
WAIT_SECONDS = 3600.0  # for the process that holds the lock
POLL_SECONDS = 0.5


@contextmanager
def one_at_a_time(path: Path, work: str, then_together: bool = False) -> Iterator[None]:
    """Hold a lock during a block; the kernel releases it if the process dies.

    Args:
        path: the lock file, created if necessary.
        work: what the block does, for messages.
        then_together: processes that have waited for the first one do not wait for each other.

    Raises:
        OSError: if the lock file cannot be opened.
        UserError: if another process holds the lock for longer than WAIT_SECONDS.
    """
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + WAIT_SECONDS
        again = fcntl.LOCK_SH if then_together else fcntl.LOCK_EX
        if _taken(file, fcntl.LOCK_EX):
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        elif not _taken(file, again):
            file.seek(0)
            holder = file.read().strip() or "another process"
            log.info("waiting for %s: %s (at most %s)", holder, work, duration(WAIT_SECONDS))
            while not _taken(file, again):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{holder} has held {quoted(path)} for {duration(WAIT_SECONDS)} ({work}): wait for it, or "
                        f"stop it, then run the same command again"
                    )
                time.sleep(POLL_SECONDS)
        yield


def _taken(file: IO[str], operation: int) -> bool:
    """Try to take a lock; also true on a file system without locks."""
    try:
        fcntl.lockf(file, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("the file system of %s has no locks (%s)", quoted(file.name), error)
    return True
