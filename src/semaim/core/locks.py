"""Locks on files. The kernel releases a lock when its process ends; waiting for one is bounded."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from semaim.core.files import writing
from semaim.core.formatting import duration, quoted
from semaim.errors import UserError

log = logging.getLogger(__name__)
WAIT_SECONDS = 3600.0  # for the process that holds the lock
POLL_SECONDS = 0.2
FLOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length, process


@contextmanager
def one_at_a_time(path: Path, work: str, then_together: bool = False) -> Iterator[None]:
    """Hold a lock during a block.

    Args:
        path: the lock file, created if necessary.
        work: what the block does, for messages.
        then_together: processes that have waited for the first one do not wait for each other.

    Raises:
        CannotWrite: if the lock file cannot be opened.
        UserError: if another process holds the lock for longer than WAIT_SECONDS.
    """
    with opened(path) as file:
        if not taken(file):
            _wait(file, fcntl.LOCK_SH if then_together else fcntl.LOCK_EX, work)
        yield


def _wait(file: IO[str], operation: int, work: str) -> None:
    who, started, told = holder(file), time.monotonic(), False
    while not taken(file, operation):
        waited = time.monotonic() - started
        if waited > WAIT_SECONDS:
            raise UserError(
                f"{who} has held {quoted(file.name)} for {duration(WAIT_SECONDS)} ({work}): wait for it, or stop it, "
                f"then run the same command again"
            )
        if waited > POLL_SECONDS and not told:  # most waits are shorter
            log.info("waiting for %s: %s (at most %s)", who, work, duration(WAIT_SECONDS))
            told = True
        time.sleep(POLL_SECONDS)


def opened(path: Path) -> IO[str]:
    """A lock file, created if necessary; raises CannotWrite. The lock ends when any file object of it is closed."""
    with writing(path):
        return open(path, "a+", encoding="utf-8", errors="replace", opener=_no_link)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)  # a link in a folder from elsewhere may name any file


def taken(file: IO[str], operation: int = fcntl.LOCK_EX) -> bool:
    """Try to take a lock, and leave a note for `holder`; also true on a file system without locks."""
    try:
        fcntl.lockf(file, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning(
            "the file system of %s has no locks (%s): take care not to start the same twice", quoted(file.name), error
        )
    if operation == fcntl.LOCK_EX:
        with suppress(OSError):  # only for messages: `semaim rm` works on a full disk
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    return True


def taken_elsewhere(path: Path) -> bool:
    """Whether another live process holds a lock. This only asks, so it needs no permission to write."""
    try:
        with open(path, "rb") as file:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)


def holder(file: IO[str]) -> str:
    """The process that holds a lock, for messages."""
    file.seek(0)
    return file.read().strip() or "another process"
