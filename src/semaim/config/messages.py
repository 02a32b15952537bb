"""Error messages and exit codes of failed commands. Every program imports this file, so it imports nothing heavy."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semaim.core import interpreter
from semaim.core.formatting import printable
from semaim.core.ranks import ranks
from semaim.core.signals import interruptible, interruption_or
from semaim.errors import FULL, CannotWrite, Interrupted, NonFiniteError, StillInUse, SweepFailed, TakenOver, UserError

EXIT_ERROR, EXIT_USER_ERROR, EXIT_NOT_FINITE = 1, 2, 3
EXIT_HELD = 69  # the job is requeued, as after the death of a process
EXIT_INTERRUPTED, EXIT_INTERRUPTED_AT_ONCE, EXIT_BROKEN_PIPE = 75, 130, 141

EXIT_CODES: dict[type, int] = {NonFiniteError: EXIT_NOT_FINITE, CannotWrite: EXIT_ERROR}
EXIT_CODES |= {TakenOver: EXIT_ERROR, StillInUse: EXIT_HELD}


def reports_errors(command: Callable[..., int | None]) -> Callable[..., int]:
    """Decorate the main function of a program: an error becomes a message and the returned exit code."""

    @functools.wraps(command)
    def main(*arguments: Any) -> int:
        try:
            try:
                with interruptible():
                    code = command(*arguments) or 0
                    sys.stdout.flush()
                    return code
            except BrokenPipeError:
                raise
            except (Exception, KeyboardInterrupt) as error:
                return print_error(interruption_or(error))
        except BrokenPipeError:  # the reader of the output, or of the error message, has ended, such as head
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except BrokenPipeError:  # Python flushes once more at its exit
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return EXIT_BROKEN_PIPE

    return main


@contextmanager
def exits_on_error(record: Callable[[BaseException], None] | None = None) -> Iterator[None]:
    """End the process if this block fails, before its caller (Hydra, submitit) reports the error in its own way.

    Calls `record` with the error first, unless a signal stopped the run.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as caught:
        error = interruption_or(caught)
        if record is not None and not isinstance(error, Interrupted):
            record(error)
        code = print_error(error)
        interpreter.announce_exit(code)
        sys.exit(code)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, such as that of Hydra's report on a constructor."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def explain(error: BaseException, words: Sequence[str] | None = None) -> str | None:
    """The message for an error that the user can fix, or None for a bug.

    Args:
        error: the error.
        words: the options as typed; None for those of this process.
    """
    chain = _chain(error)
    stated = {error, *(link.__cause__ for link in chain)}  # others may be handled errors before a bug
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if isinstance(link, OSError) and link.filename and link in stated:  # another user's, a folder, a bad disk
            return f"{link.filename}: {link.strerror}"
    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"DataLoader worker \(pid\D*([\d, ]+)\) (.+?)[.\s]*(?:It is|$)", text):
        return (
            f"a process that loads images {match[2]} (pid {match[1]}): if memory is short, lower data.num_workers or "
            f"trainer.batch_size, or raise the limit (docker run --memory and --shm-size, hydra.launcher.mem_gb)"
        )
    if re.search(r"gloo.*(closed by peer|reset by peer|Broken pipe)|ncclRemoteError", text, re.DOTALL):
        return "another process of this run has ended; its own message says why"
    if not any(type(link).__module__.startswith(("hydra.", "omegaconf.", "yaml.")) for link in chain):
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        of_hydra = "/hydra/" in (files or [""])[-1] or any(file.endswith("_config_source.py") for file in files)
        if not isinstance(error, ValueError) or not of_hydra:  # plain ones, for words and for files that are not UTF-8
            return None
    from semaim.config.hydra_messages import hydra_message

    return hydra_message(chain, sys.argv[1:] if words is None else words)


def one_line(error: Exception) -> str:
    """The message of an error in one line; faults of the program with their type."""
    first, *others = (explain(error) or f"{type(error).__name__}: {error}").strip().splitlines()
    for line in filter(None, map(str.strip, others)):
        first += (" " if first.endswith((":", ".")) else "; ") + line
    return printable(first)


def print_error(error: BaseException) -> int:
    """Print the message of the error that ended a run, and return the exit code."""
    if isinstance(error, Interrupted):
        if ranks().speaks:  # all processes have agreed on it
            print(f"{printable(str(error))}; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, OSError) and error.errno in FULL:
        error = CannotWrite(Path(error.filename or "the output"), error)
    if isinstance(error, SweepFailed):
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED_AT_ONCE
    if (message := explain(error)) is None:
        print(printable("".join(traceback.format_exception(error)), keep="\n"), end="", file=sys.stderr)
        return EXIT_ERROR
    first, *others = message.splitlines() or [""]  # lines may come from the name of a file
    lines = [first, *(line if line.startswith(" ") else f"  {line}" for line in others)]
    print(printable("error: " + "\n".join(lines), keep="\n"), file=sys.stderr)
    codes = [EXIT_CODES[type(link)] for link in _chain(error) if type(link) in EXIT_CODES]
    return codes[0] if codes else EXIT_USER_ERROR
