"""Commands for sweeps and runs that were started: show, cancel, retry."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.config.validate import check_launcher
from semaim.core import slurm_job
from semaim.core.formatting import plural, printable
from semaim.errors import DamagedFile, UserError
from semaim.runs.folder import RunFolder
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.submit import submit
from semaim.sweeps.sweep import FILE, Executor, Point, Sweep
from semaim.sweeps.table import next_commands, table

log = logging.getLogger(__name__)
REFRESH_SECONDS = 5.0
CANCEL_TIMEOUT_SECONDS = 120.0


def find(path: Path) -> tuple[Sweep, list[int]]:
    """The sweep that a folder belongs to, and the indices of the points in the folder.

    These are all points for the folder of a sweep; for a run folder, the run and its follow-up runs. A run that belongs
    to no sweep is returned as a sweep of one point.

    Raises:
        UserError: if it is neither a sweep's nor a run's folder.
    """
    if (path / FILE).is_file():
        sweep = Sweep.load(path)
        return sweep, list(range(len(sweep.points)))
    if not (path / "config.yaml").exists():
        raise UserError(f"{path} is neither the folder of a sweep nor of a run")
    run = str(path.absolute())
    files = sorted(path.absolute().parent.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        try:
            sweep = Sweep.load(file.parent)
        except DamagedFile as error:  # it may be of other runs
            log.warning("%s", error)
            continue
        run_dirs = [point.run_dir for point in sweep.points]
        if run in run_dirs:
            index = run_dirs.index(run)
            return sweep, [i for i, point in enumerate(sweep.points) if index in (i, point.after)]
    folder = RunFolder(path)
    status, start = folder.status(), folder.last_start()
    executor: Executor = "slurm" if "job" in status else "basic"
    point = Point([], run, job=status.get("job", "here"))
    return Sweep(executor, {}, [point], restarts=0, command=start.get("command", ""), path=folder.path), [0]


def show(paths: Sequence[Path]) -> tuple[str, list[PointState]]:
    """The tables of folders, and the states in them."""
    tables, shown = [], []
    for path in paths:
        try:
            sweep, indices = find(path)
        except DamagedFile as error:
            tables.append(printable(f"{path}\n{error}", keep="\n"))
            shown.append(PointState("damaged", str(error)))
            continue
        point_states = states(sweep)
        update_parent(sweep, point_states)
        tables.append(f"{printable(str(path))}\n{table(sweep, point_states, indices)}")
        shown += [point_states[index] for index in indices]
    return "\n\n".join(tables), shown


def watch(paths: Sequence[Path], print_text: Callable[[str], None]) -> list[PointState]:
    """Print the tables whenever they change, until all runs have ended."""
    previous = ""
    while True:
        text, point_states = show(paths)
        if text != previous:
            print_text(("\x1b[2J\x1b[H" if sys.stdout.isatty() else "") + f"{time.strftime('%H:%M:%S')}\n{text}")
            previous = text
        if all(state.over for state in point_states):
            return point_states
        time.sleep(REFRESH_SECONDS)


def cancel(path: Path) -> str:
    """Ask the jobs of unfinished points of a folder to stop, and wait until they have; returns the table of the points.

    Raises:
        UserError: if the request fails, or if jobs have not ended in time.
    """
    sweep, indices = find(path)
    point_states = states(sweep)
    alive = [sweep.points[index] for index in indices if not point_states[index].over]
    if sweep.executor == "slurm":
        if not slurm_job.cancel([str(point.job) for point in alive]):
            raise UserError("SLURM does not accept the request (scancel failed): try again")
    else:
        for point in alive:
            status = point.folder.status()
            here = status.get("host") == socket.gethostname()
            process = int(point.job or 0) if sweep.executor == "local" else status.get("pid", 0) if here else 0
            if process < 1:  # 0 and below are groups of processes
                raise UserError(f"{point.run_dir}: its process is not of this machine, or unknown; stop the command "
                                f"that started it")  # fmt: skip
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + CANCEL_TIMEOUT_SECONDS
    while not all((point_states := states(sweep))[index].over for index in indices) and time.monotonic() < deadline:
        time.sleep(1)
    update_parent(sweep, point_states)
    if remaining := [str(sweep.points[index].job) for index in indices if not point_states[index].over]:
        raise UserError(f"jobs that have not ended after {CANCEL_TIMEOUT_SECONDS:.0f} s: {', '.join(remaining)}")
    return f"{printable(str(path))}\n{table(sweep, point_states, indices)}"


def retry(path: Path, words: Sequence[str]) -> str:
    """Submit unsuccessful points of a folder again, with launcher options such as "mem_gb=64".

    Returns:
        the table of the points, and the next commands.

    Raises:
        UserError: for an option that is malformed or that the launcher does not have, or a sweep without jobs or of
            another user.
    """
    if malformed := [word for word in words if "=" not in word]:
        raise UserError(f"{malformed[0]}: give launcher options as option=value")
    options: Any = OmegaConf.to_container(
        OmegaConf.from_dotlist([word.removeprefix("hydra.launcher.") for word in words])
    )
    sweep, indices = find(path)
    if (sweep.path / FILE).is_file() and (sweep.path / FILE).stat().st_uid != os.getuid():
        raise UserError(f"{sweep.path} is of another user, whose commands would run as yours: if you trust it, type "
                        f"its command in {sweep.cwd}\n  {sweep.command}")  # fmt: skip
    if sweep.executor == "basic":
        raise UserError(f"{sweep.path} ran without jobs: type its command again, it continues\n  {sweep.command}")
    if unknown := sorted(options.keys() - sweep.launcher.keys()):
        known = ", ".join(sorted(sweep.launcher))
        raise UserError(f"there is no launcher option {unknown[0]}; there are: {known}")
    sweep.launcher |= options
    check_launcher(sweep.launcher)
    point_states = states(sweep)
    retried = [i for i in indices if point_states[i].unsuccessful and point_states[i].name != "damaged"]
    submit(sweep, retried)
    point_states = states(sweep)
    update_parent(sweep, point_states)
    return f"submitted {plural(len(retried), 'job')}\n{table(sweep, point_states, indices)}\n{next_commands(sweep)}"
