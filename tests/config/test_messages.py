"""Errors of commands: one message and an exit code, for each kind of error."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from semaim.config.messages import exits_on_error, reports_errors
from semaim.core import interpreter
from semaim.core.signals import StopRequest
from semaim.errors import Interrupted, NonFiniteError, SweepFailed, UserError
from semaim.run import command_line

ERRORS = [
    (UserError("set x"), 2, "error: set x\n"),
    (NonFiniteError("not finite"), 3, "error: not finite\n"),
    (SweepFailed("2 of 3"), 1, "error: 2 of 3\n"),
    (Interrupted("stopped"), 75, "stopped; the same command continues\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
]


@pytest.mark.parametrize(("error", "code", "said"), ERRORS, ids=repr)
def test_a_program_returns_the_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors
    def program(word: str) -> None:
        print(word)
        raise error

    assert program("begun") == code
    assert capsys.readouterr() == ("begun\n", said)


def test_a_program_without_errors_returns_its_own_exit_code() -> None:
    assert [reports_errors(lambda code=code: code)() for code in (None, 0, 2)] == [0, 0, 2]


def test_a_fault_has_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def program() -> None:
        raise RuntimeError("a fault")

    assert program() == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("RuntimeError: a fault\n")


@pytest.mark.parametrize(("error", "code", "said"), ERRORS, ids=repr)
def test_a_run_ends_the_process_and_records_failures(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[BaseException] = []
    announced: list[int] = []
    monkeypatch.setattr(interpreter, "announce_exit", announced.append)
    with pytest.raises(SystemExit) as ended, exits_on_error(recorded.append):
        raise error
    assert (ended.value.code, announced) == (code, [code])
    assert recorded == ([] if isinstance(error, Interrupted) else [error])
    assert capsys.readouterr().err == said


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as Python handles it: a shell that runs tests in the background has it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("wrap", [reports_errors, lambda program: reports_errors(lambda: _exits(program))])
def test_ctrl_c_that_a_library_turns_into_another_error_is_an_interruption(
    wrap: Callable[[Callable[[], None]], Callable[[], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    def program() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    try:
        code = wrap(program)()
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert (code, capsys.readouterr().err) == (130, "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _exits(program: Callable[[], None]) -> None:
    with exits_on_error():
        program()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_that_an_import_loses_is_found_before_a_run_begins(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def program() -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        StopRequest()

    assert (program(), capsys.readouterr().err) == (130, "interrupted\n")


def test_flags_may_stand_between_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["semaim run", "model=aim_tiny", "-m", "--config-dir", "a=b", "seed=0,1"])
    monkeypatch.setattr("semaim.run.main", lambda: None)
    command_line()
    assert sys.argv == ["semaim run", "-m", "--config-dir", "a=b", "model=aim_tiny", "seed=0,1"]
