"""`python -m semaim.run`, also `semaim run`: composes the configuration, starts the processes, executes the run.

Exit codes: 0 done; 2 a mistake in what was asked, with one message; 3 a loss that was not finite; 75 stopped by a
signal with everything saved (the same command continues), 130 by a second Ctrl-C; 1 a fault of the program, with its
traceback.
"""

from __future__ import annotations

import os
import sys

import hydra
from omegaconf import DictConfig

from semaim.config.compose import CONF
from semaim.config.follow_ups import follow_ups
from semaim.config.messages import print_error
from semaim.config.run_spec import run_spec_of_this_process


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """One run, and those that are to follow it; the value of the first one's metric."""
    try:
        spec = run_spec_of_this_process(cfg)
        specs = [spec, *follow_ups(spec)]
        from semaim.lifecycle import execute, session  # torch is loaded only once the configuration is sound

        with session(cfg.device) as (processes, stop):
            values = [execute(each, processes, stop) for each in specs]
        return values[0]
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(print_error(error))


def command_line() -> int:
    """Compose and run; errors of composition are reported like those of the run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of ending in Hydra's own report
    alone = ("-m", "--multirun", "-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help")
    if any(word.startswith("hydra/launcher=") for word in sys.argv) and not set(alone) & set(sys.argv):
        sys.argv.insert(1, "--multirun")  # Hydra's launchers are for sweeps; this is one of a single point
    try:
        main()
    except Exception as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
