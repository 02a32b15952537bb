"""Signals are answered at once, with what happens next and what is lost."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from semaim.core import signals
from semaim.core.signals import SIGNALS, StopRequest, interruptible

AGAIN = "; press Ctrl-C again to quit now"


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    at_hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    with interruptible():
        stop = StopRequest()
        yield stop
        stop.restore()
    with interruptible():  # forgets the interruptions
        pass
    assert {number: signal.getsignal(number) for number in SIGNALS} == previous
    signal.signal(signal.SIGHUP, at_hangup)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_the_first_ctrl_c_says_what_happens_and_the_second_what_is_lost(
    stop: StopRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    stop.at_once = lambda: "the steps since the checkpoint of step 40 are lost"
    send(signal.SIGINT)
    assert (stop.name, capfd.readouterr().err) == ("SIGINT", f"SIGINT: finishing this step and saving{AGAIN}\n")
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert capfd.readouterr().err == (
        "stopping at once: the steps since the checkpoint of step 40 are lost; the same command continues\n"
    )


def test_torchrun_repeats_a_ctrl_c(stop: StopRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signals.TORCHRUN, "x")
    stop.at_once = lambda: ""
    send(signal.SIGINT)
    send(signal.SIGINT)
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_where_nothing_is_saved_the_first_ctrl_c_stops(stop: StopRequest, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert stop.name == "SIGINT"
    assert capfd.readouterr().err == "stopping at once: no step is lost; the same command continues\n"


@pytest.mark.parametrize("number", [each for each in SIGNALS if each != signal.SIGINT], ids=lambda number: number.name)
def test_the_first_signal_of_a_scheduler_or_a_closed_terminal_is_told_once(
    number: signal.Signals, stop: StopRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    send(number)
    send(number)
    assert (stop.name, capfd.readouterr().err) == (number.name, f"{number.name}: stopping soon\n")


@pytest.mark.usefixtures("stop")
def test_a_closed_terminal_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "write", closed)
    send(signal.SIGHUP)


def test_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        send(signal.SIGHUP)
        stop.restore()
        assert (stop.requested, signal.getsignal(signal.SIGHUP)) == (False, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_one_of_several_processes_speaks(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    send(signal.SIGTERM)
    assert (stop.name, capfd.readouterr().err) == ("SIGTERM", "")
