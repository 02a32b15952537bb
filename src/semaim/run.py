"""`semaim run`, also `python -m semaim.run`: composes the configuration, starts the processes, executes the run.

Exit codes: 0 done; 2 a mistake of the user, with one message; 3 a loss, weight, feature or result that is not
finite; 75 stopped by a signal with everything saved (the same command continues), 130 by Ctrl-C at once; 1 a file that
cannot be written, or a fault of the program, with its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from operator import itemgetter

import hydra
from omegaconf import DictConfig

from semaim.config.compose import CONF, quoted_home
from semaim.config.follow_ups import follow_ups
from semaim.config.messages import exits_on_error, reports_errors
from semaim.config.run_spec import run_spec_of_this_process
from semaim.core import interpreter
from semaim.launching import execute_all


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Execute a run and its follow-up runs; returns the metric of the first one."""
    with exits_on_error():
        spec = run_spec_of_this_process(cfg)
        return execute_all([spec, *follow_ups(spec)])[0]


def _flags_first(words: Sequence[str]) -> list[str]:
    """The words with flags before options, since Hydra takes no flag between options."""
    of_flags = ("-cd", "-cn", "-cp", "--config-dir", "--config-name", "--config-path")  # the next word is theirs
    options = [
        "=" in word and word[0] != "-" and before not in of_flags
        for before, word in zip(["", *words], words, strict=False)
    ]
    return [word for _, word in sorted(zip(options, words, strict=True), key=itemgetter(0))]


@reports_errors
def command_line() -> None:
    """Compose and run; errors of composition are reported like errors of the run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of Hydra's own report
    sys.argv[1:] = _flags_first(quoted_home(sys.argv[1:]))
    hydra_only = ("-m", "--multirun", "-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help")
    if any(word.startswith("hydra/launcher=") for word in sys.argv) and not set(hydra_only) & set(sys.argv):
        sys.argv.insert(1, "--multirun")  # Hydra's launchers need a sweep; this one has a single point
    main()


if __name__ == "__main__":
    interpreter.run_program(command_line)
