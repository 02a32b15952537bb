"""`python -m semaim.check` inside the test's own process."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

from semaim.preflight import check
from semaim.preflight.check import Checked, check_sweep


def one(*words: str, launcher: dict[str, Any] | None = None) -> Checked:
    """A single run is looked at."""
    return check_sweep([list(words)], launcher=launcher)


def command(*words: str) -> int:
    """The command, inside this process; its exit code."""
    with mock.patch.object(sys, "argv", ["check.py", *words]):
        return check.main()
