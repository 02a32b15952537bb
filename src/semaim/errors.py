"""The exceptions that end a run without a traceback, because the message itself says what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Something the person at the keyboard can mend: an option, a path, a full disk. Exit code 2."""


class NonFiniteError(UserError):
    """The loss or a gradient was not finite; training stopped before the optimizer step. Exit code 3."""


class Interrupted(Exception):
    """The run was asked to stop, saved its state and left; the same command continues it. Exit code 75."""


class SweepFailed(Exception):
    """Some runs of a sweep did not finish; a table has said which, and why. Exit code 1."""
