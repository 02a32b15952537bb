"""Submit again what failed in a sweep: `python -m semaim.retry --failed <sweep or run folder> [option=value ...]`.

Runs that failed, were killed or vanished continue from their last checkpoint, with the launcher options of the sweep
unless others are given here, such as mem_gb=64 or partition=long. Finished runs and live jobs are left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.core import terminal
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import states
from semaim.sweeps.status import find
from semaim.sweeps.submit import submit
from semaim.sweeps.sweep import Sweep
from semaim.sweeps.table import next_commands, table


def retry(sweep: Sweep, numbers: Sequence[int], options: dict[str, Any]) -> int:
    """Submit the points again that ended badly.

    Returns:
        how many there are.

    Raises:
        UserError: for an option that the launcher does not have, or a sweep without jobs.
    """
    if sweep.executor == "basic":
        raise UserError(f"{sweep.path} ran without jobs: type its command again, it continues\n  {sweep.command}")
    if unknown := sorted(options.keys() - sweep.launcher.keys()):
        known = ", ".join(sorted(sweep.launcher))
        raise UserError(f"there is no launcher option {unknown[0]}; there are: {known}")
    sweep.launcher |= options
    now = states(sweep)
    bad = [number for number in numbers if now[number].over and now[number].word != "finished"]
    submit(sweep, bad)
    return len(bad)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semaim.retry", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of a run of it")
    parser.add_argument("options", nargs="*", help="launcher options that change, such as mem_gb=64")
    parser.add_argument("--failed", action="store_true", required=True, help="what failed, was killed or vanished")
    arguments = parser.parse_args()
    terminal.show_logs(to_screen=True)
    try:
        if wrong := [option for option in arguments.options if "=" not in option]:
            raise UserError(f"{wrong[0]}: give launcher options as option=value")
        given = [option.removeprefix("hydra.launcher.") for option in arguments.options]
        options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(given))
        sweep, numbers = find(arguments.folder)
        count = retry(sweep, numbers, options)
        now = states(sweep)
        update_parent(sweep, now)
        print(f"submitted {plural(count, 'job')}\n{table(sweep, now, numbers)}\n{next_commands(sweep)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
