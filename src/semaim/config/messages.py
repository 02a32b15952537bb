"""Error messages and exit codes of failed commands. Every program imports this file, so it imports nothing heavy."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from semaim.core import interpreter
from semaim.errors import Interrupted, NonFiniteError, SweepFailed, UserError

EXIT_ERROR, EXIT_USER_ERROR, EXIT_NOT_FINITE = 1, 2, 3
EXIT_INTERRUPTED, EXIT_INTERRUPTED_AT_ONCE, EXIT_BROKEN_PIPE = 75, 130, 141


def reports_errors(command: Callable[..., int | None]) -> Callable[..., int]:
    """Decorate the main function of a program: an error becomes a message and the returned exit code."""

    @functools.wraps(command)
    def main(*arguments: Any) -> int:
        try:
            code = command(*arguments) or 0
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED_AT_ONCE
        except BrokenPipeError:  # the reader of the output has ended, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its exit
            return EXIT_BROKEN_PIPE
        except Exception as error:
            return print_error(error)

    return main


@contextmanager
def exits_on_error(record: Callable[[BaseException], None] | None = None) -> Iterator[None]:
    """End the process if this block fails, before its caller (Hydra, submitit) reports the error in its own way.

    Calls `record` with the error first, unless a signal stopped the run.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if record is not None and not isinstance(error, Interrupted):
            record(error)
        code = print_error(error)
        interpreter.announce_exit(code)
        sys.exit(code)


def explain(error: BaseException) -> str | None:
    """The message for an error that the user can fix, or None for a bug."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"Could not override '([^']+)'", text):
        from semaim.config.validate import suggestion

        return f"there is no option {match[1]}. {suggestion(match[1])}"
    if match := re.search(r"Could not load '([^']+)/([^'/]+)'", text):
        from semaim.config.compose import choices

        return f"there is no {match[2]} in {match[1]}: choose from {', '.join(choices(match[1]))}"
    if match := re.search(r"Missing mandatory value: .*?full_key: (\S+)", text, re.DOTALL):
        return f"{match[1]} must be given: {match[1]}=..."
    if match := re.search(r"unexpected keyword argument '(\w+)'.*?full_key: (\S+)", text, re.DOTALL):
        return f"there is no option {match[2].removeprefix('task.')}.{match[1]}: no component accepts it"
    if match := re.search(r"Error in call to target .*?\n(.*)\nfull_key: (\S+)", text, re.DOTALL):
        return f"the options of {match[2].removeprefix('task.')} do not fit: {match[1]}"
    if "Error locating target" in text:
        return f"{str(error).split(', set env var')[0]}: {chain[-1]}"
    if any(type(link).__module__.startswith(("hydra.", "omegaconf.")) for link in chain):
        return str(error).split("\nConfig search path:")[0].strip()
    return None


def one_line(error: Exception) -> str:
    """The message of an error in one line; faults of the program with their type."""
    first, *others = (explain(error) or f"{type(error).__name__}: {error}").strip().splitlines()
    for line in filter(None, map(str.strip, others)):
        first += (" " if first.endswith((":", ".")) else "; ") + line
    return first


def print_error(error: BaseException) -> int:
    """Print the message of the error that ended a run, and return the exit code."""
    if isinstance(error, Interrupted):
        print(f"{error}; everything is saved, and the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, SweepFailed):
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        print("interrupted at once; the same command continues from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED_AT_ONCE
    if (message := explain(error)) is None:
        traceback.print_exception(error)
        return EXIT_ERROR
    print(f"error: {message}", file=sys.stderr)
    return EXIT_NOT_FINITE if isinstance(error, NonFiniteError) else EXIT_USER_ERROR
