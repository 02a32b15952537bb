"""Error messages and exit codes of failed commands."""

from __future__ import annotations

import re
import sys
import traceback

from hydra.errors import HydraException

from semaim.config.validate import suggestion
from semaim.errors import Interrupted, NonFiniteError, SweepFailed, UserError

EXIT_ERROR, EXIT_USER_ERROR, EXIT_NOT_FINITE, EXIT_INTERRUPTED, EXIT_INTERRUPTED_AT_ONCE = 1, 2, 3, 75, 130


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
        return f"there is no option {match[1]}. {suggestion(match[1])}"
    if match := re.search(r"Missing mandatory value: .*?full_key: (\S+)", text, re.DOTALL):
        return f"{match[1]} must be given: {match[1]}=..."
    if match := re.search(r"unexpected keyword argument '(\w+)'.*?full_key: (\S+)", text, re.DOTALL):
        return f"there is no option {match[2].removeprefix('task.')}.{match[1]}: no component accepts it"
    if match := re.search(r"Error in call to target .*?\n(.*)\nfull_key: (\S+)", text, re.DOTALL):
        return f"the options of {match[2].removeprefix('task.')} do not fit: {match[1]}"
    if "Error locating target" in text:
        return f"{str(error).split(', set env var')[0]}: {chain[-1]}"
    if any(isinstance(link, HydraException) or type(link).__module__.startswith("omegaconf") for link in chain):
        return str(error).split("\nConfig search path:")[0].strip()
    return None


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
