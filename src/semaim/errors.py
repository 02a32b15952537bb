"""Exceptions that end a run without a traceback; their messages include the remedy."""

from __future__ import annotations

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk or a quota


class _InOneLine(Exception):
    """An error whose message says it all."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of the traceback (a protocol of IPython)."""
        return [f"{type(self).__name__}: {self}"]


class UserError(_InOneLine, ValueError):
    """An error the user can fix: an option, a path. Exit code 2."""


class NeedsOptions(UserError):
    """A command that works with further options. Exit code 2.

    Args:
        problem: what is wrong.
        options: to add to the command line.
    """

    def __init__(self, problem: str, *options: str) -> None:
        super().__init__(f"{problem}: add {' '.join(options)}")
        self.problem = problem
        self.options = options


class BatchTooLarge(NeedsOptions):
    """`trainer.batch_size` is more than the number of training images. Exit code 2.

    Args:
        problem: as of `NeedsOptions`.
        images: the number of training images.
    """

    def __init__(self, problem: str, images: int) -> None:
        super().__init__(problem, f"trainer.batch_size={images}")
        self.images = images


class DamagedFile(UserError):
    """A stored file is damaged, of a newer version or not readable. Exit code 2.

    Args:
        path: the file.
        reason: what is wrong with it.
        remedy: what to do.
    """

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path} is damaged, of a newer version or not readable ({reason}): {remedy}")
        self.path = path


class NotReadable(DamagedFile):
    """A stored file cannot be read by this user. Exit code 2.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        UserError.__init__(self, f"{path} cannot be read (Permission denied): ask its owner for the permission")
        self.path = path


class CannotWrite(UserError):
    """A file cannot be written: no space, no permission, a read-only disk. Exit code 1.

    Args:
        path: the file.
        error: of the operating system.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        remedy = "make room" if error.errno in FULL else "get the permission, or choose another folder"
        if error.errno == errno.ENOENT:
            remedy = "restore it"
        reason = error.strerror or type(error).__name__
        super().__init__(f"{path} cannot be written ({reason}): {remedy}, then type the same command again")


class TakenOver(CannotWrite):
    """A restart of this job, which SLURM took for lost, has the run folder now. Exit code 1."""

    def __init__(self, path: Path, owner: str) -> None:
        UserError.__init__(self, f"{path} belongs to {owner} now: this process writes no more to it and ends")


class InUse(UserError):
    """Another process holds a run folder. Exit code 2."""


class StillInUse(InUse):
    """A restarted job has waited for its run folder in vain, and is requeued. Exit code 69."""


class NonFiniteError(UserError):
    """A loss, gradient, weight, feature or result is not finite; it is not saved or reported. Exit code 3."""


class Interrupted(_InOneLine):
    """A stop was requested; the run saved its state and exited. The same command continues it. Exit code 75."""


class SweepFailed(Exception):
    """Some runs of a sweep did not finish; a printed table lists them with reasons. Exit code 1."""
