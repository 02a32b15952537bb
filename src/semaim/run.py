"""The runner: `python -m semaim.run`. Composes the configuration, opens the run, builds the task, runs it.

Exit codes: 0 done; 2 a mistake in what was asked, with one message; 3 a loss that was not finite; 75 stopped by a
signal with everything saved (the same command continues), 130 by a second Ctrl-C; 1 a fault of the program, with its
traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from semaim.command_line import CONF, check_overrides, explain
from semaim.errors import Interrupted, NonFiniteError
from semaim.runfolder import run_name
from semaim.then import follow_ups

EXIT_FAULT, EXIT_MISTAKE, EXIT_NOT_FINITE, EXIT_INTERRUPTED, EXIT_AT_ONCE = 1, 2, 3, 75, 130


def _name_of_this_run(named_after: Sequence[str]) -> str:
    hydra_config = HydraConfig.get()
    return run_name(hydra_config.runtime.choices, named_after, hydra_config.overrides.task)


OmegaConf.register_new_resolver("semaim.run_name", _name_of_this_run, replace=True)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """One run, and those that are to follow it; the value of the first one's metric."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    try:
        sources = hydra_config.runtime.config_sources
        folders = [f"file://{s.path}" for s in sources if s.provider == "command-line"]
        check_overrides(overrides, cfg, folders)
        config = plain(cfg)
        choices = {group: choice for group, choice in hydra_config.runtime.choices.items() if group in cfg}
        followers = follow_ups(cfg, choices, folders)
        from semaim.lifecycle import Job, execute, session  # torch is loaded only once the configuration is sound

        with session(config["device"]) as (processes, stop):
            value = execute(Job(cfg, config, overrides, choices), processes, stop)
            for each in followers:
                execute(Job(each.cfg, plain(each.cfg), each.overrides, each.choices), processes, stop)
        return value
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        # A sweep goes on with its next run after one that failed, but ends when its user stops it.
        if HydraConfig.get().mode == RunMode.MULTIRUN and code not in (EXIT_INTERRUPTED, EXIT_AT_ONCE):
            raise
        sys.exit(code)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as it is stored: interpolations resolved, parts that the task names in their own place."""
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for key in cfg.task:
        if OmegaConf.is_interpolation(cfg.task, key):
            del config["task"][key]
    return config


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
