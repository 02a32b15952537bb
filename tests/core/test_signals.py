"""Signals during the start of a job wait for their handler."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from semaim.core.signals import SIGNALS, StopRequest, postpone


@pytest.fixture(autouse=True)
def _mask() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_postponed_signal_arrives_at_the_handler(number: signal.Signals) -> None:
    """By default each of these signals would end the process or raise KeyboardInterrupt."""
    postpone()
    os.kill(os.getpid(), number)
    assert number in signal.sigpending()
    stop = StopRequest()
    try:
        assert (stop.requested, stop.name) == (True, number.name)
        assert not signal.sigpending()
    finally:
        stop.restore()


def test_a_time_limit_is_not_taken_for_the_sigterm_that_follows_it() -> None:
    postpone()
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(os.getpid(), number)
    stop = StopRequest()
    stop.restore()
    assert stop.name == "SIGUSR2"
