"""Exceptions that end a run without a traceback; their messages include the remedy."""

from __future__ import annotations


class UserError(ValueError):
    """An error the user can fix: an option, a path, a full disk. Exit code 2."""


class NonFiniteError(UserError):
    """A loss, gradient, weight, feature or result is not finite; it is not saved or reported. Exit code 3."""


class Interrupted(Exception):
    """A stop was requested; the run saved its state and exited. The same command continues it. Exit code 75."""


class SweepFailed(Exception):
    """Some runs of a sweep did not finish; a printed table lists them with reasons. Exit code 1."""
