"""What a user does with a sweep or run that was started: look at it, stop it, submit again what failed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.core import slurm_job
from semaim.core.files import read_json
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.submit import submit
from semaim.sweeps.sweep import FILE, Executor, Point, Sweep
from semaim.sweeps.table import next_commands, table

EVERY_SECONDS = 5.0
PATIENCE_SECONDS = 120.0


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


def cancel_and_show(path: Path) -> str:
    """Cancel what a folder stands for; its table.

    Raises:
        UserError: if jobs cannot be cancelled, or have not ended in time.
    """
    sweep, numbers = find(path)
    now = cancel(sweep, numbers)
    update_parent(sweep, now)
    if left := [str(sweep.points[number].job) for number in numbers if not now[number].over]:
        raise UserError(f"jobs that have not ended after {PATIENCE_SECONDS:.0f} s: {', '.join(left)}")
    return f"{path}\n{table(sweep, now, numbers)}"


def retry_and_show(path: Path, words: Sequence[str]) -> str:
    """Submit again what failed in a folder, with launcher options such as "mem_gb=64"; its table and the next commands.

    Raises:
        UserError: for a malformed or unknown option, or a sweep without jobs.
    """
    if wrong := [word for word in words if "=" not in word]:
        raise UserError(f"{wrong[0]}: give launcher options as option=value")
    given: Any = OmegaConf.to_container(
        OmegaConf.from_dotlist([word.removeprefix("hydra.launcher.") for word in words])
    )
    sweep, numbers = find(path)
    count = retry(sweep, numbers, given)
    now = states(sweep)
    update_parent(sweep, now)
    return f"submitted {plural(count, 'job')}\n{table(sweep, now, numbers)}\n{next_commands(sweep)}"
