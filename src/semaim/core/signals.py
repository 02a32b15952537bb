"""Graceful shutdown: on a signal, the training loop stops after the current step. Ctrl-C is answered at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from semaim.core.ranks import ranks
from semaim.core.slurm_job import is_being_requeued, this_job
from semaim.errors import Interrupted

if TYPE_CHECKING:  # imports torch
    from semaim.core.distributed import Processes

# SLURM sends SIGUSR2 to a semaim job before its time limit, and SIGTERM when it preempts or cancels the job.
# A terminal that is closed sends SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
# torchrun passes a Ctrl-C on that the terminal has sent to its processes already.
TORCHRUN, ECHO_SECONDS = "TORCHELASTIC_RUN_ID", 1.0


_interruptions: list[KeyboardInterrupt] = []  # of this program


def interruption_or(error: BaseException) -> BaseException:
    """The Ctrl-C that ended this program, if there was one: libraries may turn KeyboardInterrupt into other errors."""
    return _interruptions[-1] if _interruptions and not isinstance(error, Interrupted) else error


def can_handle() -> bool:
    """Whether this is the main thread, which alone can handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interruptible() -> Iterator[None]:
    """A block, the program, that a SIGINT (Ctrl-C) interrupts at once where no `StopRequest` handles it."""
    _interruptions.clear()
    if not can_handle() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: _interrupt("before it had begun"))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(what: str) -> NoReturn:
    _interruptions.append(KeyboardInterrupt(what))
    raise _interruptions[-1]


def say(text: str) -> None:
    """Write a line to standard error, from a handler: it may interrupt another write."""
    if ranks().speaks:
        erase = "\r\x1b[2K" if os.isatty(2) else ""  # the status line
        with suppress(OSError):  # the terminal is closed
            os.write(2, f"{erase}{text}\n".encode())


class StopRequest:
    """Handler of `SIGNALS` that records the first one and says what happens next.

    A second SIGINT (Ctrl-C) interrupts at once, and so does the first where nothing would be saved.

    Attributes:
        name: name of the received signal, or None.
        first_at: when the first one was received, in seconds.
        at_once: what an interruption at once would lose, while the run saves its state when it stops; else None.
        previous: the previous handlers; for SIGUSR2 submitit's, which requeues the job.
    """

    def __init__(self) -> None:
        if _interruptions:  # an import has lost it
            raise _interruptions[-1]
        self.name: str | None = None
        self.first_at = 0.0
        self.at_once: Callable[[], str] | None = None
        heard = [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores it
        heard = heard if can_handle() else []  # launched from another thread
        self.previous = {signum: signal.signal(signum, self._handle) for signum in heard}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)  # the batch script of a job blocks them until here

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.name is not None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.name is None
        if first:
            self.first_at = time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self.first_at < ECHO_SECONDS and TORCHRUN in os.environ:
            return
        if signum == signal.SIGINT and (self.at_once is None or not first):
            self.name = self.name or "SIGINT"
            lost = "no step is lost" if self.at_once is None else self.at_once()
            say(f"stopping at once: {lost}; the same command continues")
            _interrupt(lost)
        if self.name != "SIGUSR2":  # at the time limit, SIGTERM follows SIGUSR2
            self.name = signal.Signals(signum).name
        if first:
            what = "stopping soon" if self.at_once is None else "finishing this step and saving"
            again = "; press Ctrl-C again to quit now" if signum == signal.SIGINT else ""
            say(f"{self.name}: {what}{again}")

    def agree(self, processes: Processes) -> str | None:
        """Share the received signal among all processes; collective.

        Returns:
            the signal's name, the same on every process; None if no process received one.
        """
        names = [name for name in processes.gather(self.name) if name is not None]
        if names:
            self.name = "SIGUSR2" if "SIGUSR2" in names else names[0]
        return self.name

    def will_be_requeued(self) -> bool:
        """Whether SLURM will restart this job: after its time limit, or after a preemption."""
        if not this_job():
            return False
        if self.name == "SIGUSR2":
            return callable(self.previous[signal.SIGUSR2])
        return self.name == "SIGTERM" and is_being_requeued()

    def ignore(self) -> None:
        """Ignore the signals of SLURM from now on."""
        for signum in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, signal.SIG_IGN)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
