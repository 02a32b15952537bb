"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 300.0  # seconds; limit of a wait that ends much earlier unless something hangs


def wait_for(
    condition: Callable[[], Any],
    what: str | Callable[[], str],
    seconds: float = PATIENCE,
    every: float = 0.02,
) -> Any:
    """Wait until the condition is true and return its value; asked every so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, (
            f"waited {seconds:g} s in vain for {what if isinstance(what, str) else what()}"
        )
        time.sleep(every)
    return found
