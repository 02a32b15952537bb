"""The runner: `python -m semaim.run`. Composes the configuration, opens the run, builds the task, runs it.

Exit codes: 0 done; 2 a mistake in what was asked, with one message; 3 a loss that was not finite; 75 stopped by a
signal with everything saved (the same command continues), 130 by a second Ctrl-C; 1 a fault of the program, with its
traceback.
"""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from semaim.command_line import CONF, explain
from semaim.errors import Interrupted, NonFiniteError
from semaim.job import job_of_this_process
from semaim.then import follow_ups

EXIT_FAULT, EXIT_MISTAKE, EXIT_NOT_FINITE, EXIT_INTERRUPTED, EXIT_AT_ONCE = 1, 2, 3, 75, 130


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """One run, and those that are to follow it; the value of the first one's metric."""
    try:
        job = job_of_this_process(cfg)
        jobs = [job, *follow_ups(job)]
        from semaim.lifecycle import execute, session  # torch is loaded only once the configuration is sound

        with session(cfg.device) as (processes, stop):
            values = [execute(each, processes, stop) for each in jobs]
        return values[0]
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        # A sweep goes on with its next run after one that failed, but ends when its user stops it.
        if HydraConfig.get().mode == RunMode.MULTIRUN and code not in (EXIT_INTERRUPTED, EXIT_AT_ONCE):
            raise
        sys.exit(code)


def report(error: BaseException) -> int:
    """Tell the person at the keyboard what ended a run; the exit code for it."""
    if isinstance(error, Interrupted):
        print(f"{error}; everything is saved, and the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        print("interrupted at once; the same command continues from the last checkpoint", file=sys.stderr)
        return EXIT_AT_ONCE
    if (message := explain(error)) is None:
        traceback.print_exception(error)
        return EXIT_FAULT
    print(f"error: {message}", file=sys.stderr)
    return EXIT_NOT_FINITE if isinstance(error, NonFiniteError) else EXIT_MISTAKE


def command_line() -> int:
    """Compose and run; errors of composition are reported like those of the run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of ending in Hydra's own report
    try:
        main()
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
