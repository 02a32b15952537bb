"""Locks on files. The kernel releases a lock when its process ends; waiting for one is bounded."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from semaim.core.files import writing
from semaim.core.formatting import duration, quoted
from semaim.core.slurm_job import this_job
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
        return open(path, "a+", encoding="utf-8", errors="replace", opener=_opener)


def _opener(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)  # a link in a folder from elsewhere may name any file
    with suppress(OSError):  # whoever may write in the folder may take the lock, whatever the umask
        os.fchmod(descriptor, os.stat(os.path.dirname(path)).st_mode & 0o666)
    return descriptor


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
        _write(file, this_process())
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


def this_process() -> str:
    """This process, in the words of a note."""
    job = this_job()
    restart = f" (job {job['job']}, restart {job['restarts']})" if job else ""
    return f"process {os.getpid()} on {socket.gethostname()}{restart}"


def claim(file: IO[str]) -> None:
    """Ask the process that holds a lock to end, if it is of an earlier start of the same job, on a node that was lost.

    Nothing proves from here that it is dead, so the lock is not taken from it. The note then names this process first:
    the `owner`. The other one, if it still works, sees this before it writes.
    """
    pattern = r"\(job (\w+), restart (\d+)\)"
    theirs, ours = re.search(pattern, owner(file)), re.search(pattern, this_process())
    if theirs and ours and theirs[1] == ours[1] and int(theirs[2]) < int(ours[2]):
        _write(file, f"{this_process()}\n{holder(file)}")


def owner(file: IO[str]) -> str:
    """The process that a lock belongs to: the holder, or a restart of its job that waits for it; empty if not known."""
    return (_notes(file) or [""])[0]


def holder(file: IO[str]) -> str:
    """The process that holds a lock, for messages."""
    return (_notes(file) or ["another process"])[-1]


def awaited(path: Path) -> str:
    """The process that the owner of a lock waits for, if there is one, for messages."""
    with suppress(OSError), open(path, encoding="utf-8") as file:
        return "".join(_notes(file)[1:])
    return ""


def _notes(file: IO[str]) -> list[str]:
    return os.pread(file.fileno(), 1000, 0).decode(errors="replace").splitlines()


def _write(file: IO[str], note: str) -> None:
    with suppress(OSError):  # `semaim rm` works on a full disk
        file.truncate(0)
        os.write(file.fileno(), note.encode())
