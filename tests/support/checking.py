"""`semaim check` inside the test's own process."""

from __future__ import annotations

from typing import Any

from semaim.cli import main
from semaim.preflight.check import check_sweep
from semaim.preflight.table import CheckReport


def one(*words: str, launcher: dict[str, Any] | None = None) -> CheckReport:
    """Check a single run."""
    return check_sweep([list(words)], launcher=launcher)


def command(*words: str) -> int:
    """The exit code of the command."""
    return main(["check", *words])
