"""The start and the end of the interpreter, made shorter.

torch, timm, scikit-learn and MLflow create about a million objects. By default the garbage collector inspects them
again and again during their import, and the interpreter frees them one by one at its exit: a third of the time of a
short run.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

COLLECTION_THRESHOLDS = (50_000, 20, 20)  # Python's are (700, 10, 10), or (2000, 10, 10) since 3.13

_exit_code: int | None = None


def prepare() -> None:
    """Collect garbage less often, and be ready for `announce_exit`. Call this before the libraries are imported."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `2>&-`; else the next file, such as a journal, takes its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - until the end
    gc.set_threshold(*COLLECTION_THRESHOLDS)
    atexit.register(_exit_if_announced)  # exit functions are called in reverse order: the libraries' before this one


def announce_exit(code: int) -> None:
    """State the exit code of this process, which is about to end: it then ends after all exit functions, at once."""
    global _exit_code
    _exit_code = code


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run the main function of a program and exit with the code that it returns."""
    prepare()
    code = main()
    announce_exit(code)
    sys.exit(code)


def _exit_if_announced() -> None:
    if _exit_code is None or hasattr(sys, "last_value"):  # an uncaught exception gives another exit code
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has ended, or the stream is closed
            stream.flush()
    os._exit(_exit_code)
