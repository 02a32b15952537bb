"""Scenarios that happen at the same time, each of which has a test of its own that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


class AtOnce:
    """Scenarios that have been started together, each in a thread.

    Args:
        scenarios: what to do, by name.
    """

    def __init__(self, scenarios: Mapping[str, Callable[[], Any]]) -> None:
        self._pool = ThreadPoolExecutor(max(1, len(scenarios)))
        self._futures = {name: self._pool.submit(scenario) for name, scenario in scenarios.items()}

    def result(self, name: str) -> Any:
        """Wait for a scenario; what it returns. Its error is raised here."""
        return self._futures[name].result()

    def wait(self) -> None:
        """Wait until all have ended, well or not."""
        self._pool.shutdown()


def chosen(request: pytest.FixtureRequest, names: Mapping[str, Any], argument: str = "scenario") -> list[str]:
    """Those scenarios that the selected tests of a module wait for.

    Args:
        request: of the fixture that starts them.
        names: all scenarios.
        argument: of the tests that wait for one; those without it wait for all.
    """
    asked: set[str] = set()
    for item in request.session.items:
        if item.path == request.path and request.fixturename in getattr(item, "fixturenames", ()):
            callspec = getattr(item, "callspec", None)
            asked |= {callspec.params[argument]} if callspec and argument in callspec.params else set(names)
    return [name for name in names if name in asked]
