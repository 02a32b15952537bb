"""`semaim check` in the test process."""

from __future__ import annotations

from typing import Any

from semaim.cli import main
from semaim.preflight.check import check_sweep
from semaim.preflight.table import CheckReport


def one(*words: str, launcher: dict[str, Any] | None = None) -> CheckReport:
    """Check one run."""
    return check_sweep([list(words)], launcher=launcher)


def command(*words: str) -> int:
    """Exit code of the command."""
    return main(["check", *words])
