"""Concurrent scenarios; a separate test waits for the result of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from support.slurm import Cluster


class AtOnce:
    """Scenarios started together, each in its own thread.

    Args:
        scenarios: functions to call, by name.
    """

    def __init__(self, scenarios: Mapping[str, Callable[[], Any]]) -> None:
        self._pool = ThreadPoolExecutor(max(1, len(scenarios)))
        self._futures = {name: self._pool.submit(scenario) for name, scenario in scenarios.items()}

    def result(self, name: str) -> Any:
        """Wait for a scenario and return its result. Re-raises its exception."""
        return self._futures[name].result()

    def wait(self) -> None:
        """Wait until all scenarios have ended, successfully or not."""
        self._pool.shutdown()


@contextmanager
def on_cluster(cluster: Cluster, scenarios: Mapping[str, Callable[[], Any]]) -> Iterator[AtOnce]:
    """Scenarios that wait for jobs of a cluster. At the end the jobs are cancelled and all scenarios have ended."""
    running = AtOnce(scenarios)
    try:
        yield running
    finally:
        cluster.cancel_all()  # running scenarios then fail
        running.wait()


def chosen(request: pytest.FixtureRequest, names: Mapping[str, Any], argument: str = "scenario") -> list[str]:
    """Names of the scenarios that the selected tests of a module use.

    Args:
        request: request of the fixture that starts the scenarios.
        names: all scenarios.
        argument: parameter that holds the scenario name; tests without it use all scenarios.
    """
    asked: set[str] = set()
    for item in request.session.items:
        if item.path == request.path and request.fixturename in getattr(item, "fixturenames", ()):
            callspec = getattr(item, "callspec", None)
            asked |= {callspec.params[argument]} if callspec and argument in callspec.params else set(names)
    return [name for name in names if name in asked]
