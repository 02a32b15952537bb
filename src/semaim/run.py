"""`semaim run`, also `python -m semaim.run`: composes the configuration, starts the processes, executes the run.

Exit codes: 0 done; 2 a mistake of the user, with one message; 3 a loss, weight, feature or result that is not
finite; 75 stopped by a signal with everything saved (the same command continues), 130 by Ctrl-C at once; 1 a file that
cannot be written, or a fault of the program, with its traceback.
"""

from __future__ import annotations

import os
import sys

import hydra
from omegaconf import DictConfig

from semaim.config.checkpoint_data import all_words
from semaim.config.compose import CONF, quoted_home
from semaim.config.follow_ups import follow_ups
from semaim.config.help import HELP_FLAGS, help_page
from semaim.config.messages import exits_on_error, reports_errors
from semaim.config.run_spec import run_spec_of_this_process
from semaim.config.stored_command import separated
from semaim.core import interpreter
from semaim.launching import execute_all


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Execute a run and its follow-up runs; returns the metric of the first one."""
    with exits_on_error():
        spec = run_spec_of_this_process(cfg)
        return execute_all([spec, *follow_ups(spec)])[0]


@reports_errors
def command_line() -> None:
    """Compose and run; errors of composition are reported like errors of the run."""
    if {*HELP_FLAGS} & {*sys.argv}:
        print(help_page(sys.argv[1:]))
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of Hydra's own report
    flags, options = separated(quoted_home(sys.argv[1:]))
    sys.argv[1:] = [*flags, *options]  # Hydra takes no flag between options
    hydra_only = ("-m", "--multirun", "-c", "--cfg", "-i", "--info", "--hydra-help")
    if any(word.startswith("hydra/launcher=") for word in sys.argv) and not set(hydra_only) & set(sys.argv):
        sys.argv.insert(1, "--multirun")  # Hydra's launchers need a sweep; this one has a single point
    sys.argv[1:] = all_words(sys.argv[1:])
    main()


if __name__ == "__main__":
    interpreter.run_program(command_line)
