"""The `semaim` program: `semaim <verb>`, also `python -m semaim <verb>`.

Folders and checkpoints are positional arguments, `--options` belong to the program, and `option=value` are options of
the configuration. Exit codes: 0 done; 1 a fault of the program, or failed runs; 2 a mistake of the user; 3 a loss,
weight, feature or result that is not finite; 75 stopped by a signal with everything saved; 130 interrupted at once.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from semaim.config.messages import reports_errors
from semaim.core import interpreter
from semaim.verbs import VERBS


def usage() -> str:
    """The help page of the program."""
    verbs = "\n".join(f"  {name:<11} {verb.summary}" for name, verb in VERBS.items())
    return f"""\
usage: semaim <verb> ...

{verbs}

`semaim <verb> --help` explains a verb; `semaim run --help` lists all choices of a run."""


@reports_errors
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and execute the verb; returns the exit code."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "-V", "--version"):
        import semaim

        print(f"semaim {semaim.__version__}" if name in ("-V", "--version") else usage())
        return 0
    if name not in VERBS:
        print(f"error: there is no verb {name}\n\n{usage()}", file=sys.stderr)
        return 2
    verb = VERBS[name]
    arguments = Namespace(words=words) if verb.by_hydra else verb.parser(name).parse_intermixed_args(words)
    return verb.run(arguments)


def program() -> NoReturn:
    """The console script. It finds modules in the working directory, as `python -m semaim` does."""
    if not sys.flags.safe_path and "" not in sys.path:
        sys.path.append("")
    interpreter.run_program(main)


if __name__ == "__main__":
    program()
