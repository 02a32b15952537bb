"""Stop runs and sweeps: `python -m semaim.cancel <sweep or run folder> [...]`.

Jobs that run finish their step and save, so `python -m semaim.retry --failed` continues them; jobs that wait are taken
out of the queue.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from semaim.core import slurm_job
from semaim.errors import UserError
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.status import find
from semaim.sweeps.sweep import Sweep
from semaim.sweeps.table import table

PATIENCE_SECONDS = 120.0


def cancel(sweep: Sweep, numbers: Sequence[int]) -> list[PointState]:
    """Ask the jobs of points that are not over to end, and wait until they have; the states of all points.

    Raises:
        UserError: if it cannot be asked.
    """
    now = states(sweep)
    alive = [sweep.points[number] for number in numbers if not now[number].over]
    if sweep.executor == "slurm":
        if not slurm_job.cancel([str(point.job) for point in alive]):
            raise UserError("SLURM does not take the request (scancel failed): try again")
    else:
        for point in alive:
            process = int(point.job or 0) if sweep.executor == "local" else point.folder.status().get("pid", 0)
            if not process:
                raise UserError(f"{point.run_dir}: nobody knows its process; stop the command that started it")
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all((now := states(sweep))[number].over for number in numbers) and time.monotonic() < deadline:
        time.sleep(1)
    return now


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semaim.cancel", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of sweeps or runs")
    arguments = parser.parse_args()
    try:
        for path in arguments.folders:
            sweep, numbers = find(path)
            now = cancel(sweep, numbers)
            update_parent(sweep, now)
            print(f"{path}\n{table(sweep, now, numbers)}")
            if left := [str(sweep.points[number].job) for number in numbers if not now[number].over]:
                raise UserError(f"jobs that have not ended after {PATIENCE_SECONDS:.0f} s: {', '.join(left)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
