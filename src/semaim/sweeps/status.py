"""How far runs and sweeps are: `python -m semaim.status <sweep or run folder> [...] [--watch]`.

Reads the run folders and asks SLURM where there is one (with or without accounting). A run whose job died without a
word is marked as such, here and in MLflow. Exit code 0 if all are under way or finished, 1 if any failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from semaim.core.files import read_json
from semaim.errors import UserError
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.sweep import FILE, Executor, Point, Sweep
from semaim.sweeps.table import table

EVERY_SECONDS = 5.0


def find(path: Path) -> tuple[Sweep, list[int]]:
    """The sweep that a folder belongs to, and the numbers of its points that the folder stands for.

    These are all points for the folder of a sweep; for a run folder it and what follows it. A run that no sweep knows
    is one of its own.

    Raises:
        UserError: if it is neither.
    """
    if (path / FILE).is_file():
        sweep = Sweep.load(path)
        return sweep, list(range(len(sweep.points)))
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is neither the folder of a sweep nor of a run")
    run = str(path.absolute())
    files = sorted(path.absolute().parent.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime)
    for sweep in [Sweep.load(file.parent) for file in reversed(files)]:
        places = [point.run_dir for point in sweep.points]
        if run in places:
            number = places.index(run)
            return sweep, [i for i, point in enumerate(sweep.points) if number in (i, point.after)]
    status = read_json(path / "status.json") or {}
    starts = (read_json(path / "environment.json") or {"starts": [{}]})["starts"]
    executor: Executor = "slurm" if "job" in status else "basic"
    point = Point([], run, job=status.get("job", "here"))
    return Sweep(path.absolute(), executor, {}, [point], restarts=0, command=starts[-1].get("command", "")), [0]


def show(path: Path) -> tuple[str, list[PointState]]:
    """The table of a folder, and the states in it."""
    sweep, numbers = find(path)
    now = states(sweep)
    update_parent(sweep, now)
    return f"{path}\n{table(sweep, now, numbers)}", [now[number] for number in numbers]


def watch(paths: Sequence[Path], tell: Callable[[str], None]) -> list[PointState]:
    """Show the tables again whenever they change, until everything is over."""
    told = ""
    while True:
        shown = [show(path) for path in paths]
        text = "\n\n".join(text for text, _ in shown)
        if text != told:
            tell(("\x1b[2J\x1b[H" if sys.stdout.isatty() else "") + f"{time.strftime('%H:%M:%S')}\n{text}")
            told = text
        now = [state for _, each in shown for state in each]
        if all(state.over for state in now):
            return now
        time.sleep(EVERY_SECONDS)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semaim.status", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of sweeps or runs")
    parser.add_argument("--watch", action="store_true", help="show every change until all is over")
    arguments = parser.parse_args()
    try:
        if arguments.watch:
            now = watch(arguments.folders, lambda text: print(text, flush=True))
        else:
            shown = [show(path) for path in arguments.folders]
            print("\n\n".join(text for text, _ in shown))
            now = [state for _, each in shown for state in each]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if any(state.over and state.word != "finished" for state in now) else 0


if __name__ == "__main__":
    sys.exit(main())
