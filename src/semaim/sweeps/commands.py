"""Commands for sweeps and runs that were started: show, cancel, retry."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from semaim.config.validate import check_launcher
from semaim.core import slurm_job
from semaim.core.formatting import plural, printable
from semaim.errors import DamagedFile, NotReadable, UserError
from semaim.runs.folder import RunFolder
from semaim.runs.provenance import code_changes, code_version
from semaim.sweeps.code_copy import checksums_file
from semaim.sweeps.comparison import comparison_text
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.submit import adopt, only_writer, submit
from semaim.sweeps.sweep import FILE, Executor, Point, Sweep
from semaim.sweeps.table import next_commands, redrawn, table

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
    run = os.path.realpath(path)
    files = sorted(path.absolute().parent.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        try:
            sweep = Sweep.load(file.parent)
        except DamagedFile as error:  # it may be of other runs
            log.warning("%s", error)
            continue
        places = [point.place for point in sweep.points]
        if run in places:
            index = places.index(run)
            return sweep, [i for i, point in enumerate(sweep.points) if index in (i, point.after)]
    folder = RunFolder(path)
    status, start = folder.status(), folder.last_start()
    executor: Executor = "slurm" if "job" in status else "basic"
    point = Point([], str(path.absolute()), job=status.get("job", "here"))
    return Sweep(executor, {}, [point], restarts=0, command=start.get("command", ""), path=folder.path), [0]


class View(NamedTuple):
    """What there is to see of some folders: their tables, of each run its line and its state, and comparisons."""

    text: str
    rows: list[tuple[str, PointState]]
    comparisons: list[str]

    @property
    def states(self) -> list[PointState]:
        """The state of each run."""
        return [state for _, state in self.rows]

    @property
    def summary(self) -> str:
        """The time, and the number of runs in each state."""
        counts = Counter(state.name for state in self.states)
        return f"{time.strftime('%H:%M:%S')}  {', '.join(f'{number} {name}' for name, number in counts.items())}"


def show(paths: Sequence[Path], by: str | None = None) -> View:
    """The tables of folders, and the states in them.

    Args:
        paths: folders of sweeps and runs.
        by: the metric that compares the runs of sweeps; by default the headline metric.

    Raises:
        UserError: for a folder or a metric that does not exist.
    """
    tables: list[str] = []
    comparisons: list[str] = []
    rows: list[tuple[str, PointState]] = []
    for path in paths:
        try:
            sweep, indices = find(path)
        except (DamagedFile, PermissionError) as error:
            unknown = isinstance(error, NotReadable | PermissionError)
            if unknown and len(paths) == 1:
                raise
            tables.append(printable(f"{path}\n{error}", keep="\n"))
            rows.append((tables[-1], PointState("unknown" if unknown else "damaged", str(error))))
            continue
        point_states = states(sweep)
        update_parent(sweep, point_states)
        lines = table(sweep, point_states, indices).splitlines()
        rows += zip(lines[1:], (point_states[index] for index in indices), strict=True)
        if (path / FILE).is_file() and (compared := comparison_text(sweep, point_states, by, brief=len(paths) > 1)):
            comparisons.append(compared)
            lines += ["", compared] if len(paths) == 1 else [compared]
        tables.append("\n".join([printable(str(path)), *lines]))
    return View("\n\n".join(tables), rows, comparisons)


def watch(paths: Sequence[Path], print_text: Callable[[str], None], by: str | None = None) -> list[PointState]:
    """Show the states until all runs have ended: on a terminal in place, elsewhere each change of a state as a line.

    Args:
        paths, by: as of `show`.
        print_text: prints what there is to see.
    """
    told: Sequence[tuple[str, int, str]] = ()
    while True:
        view = show(paths, by)
        over = all(state.over for state in view.states)
        now = [(s.name, s.restarts, "" if s.name == "running" else s.detail) for s in view.states]
        if sys.stdout.isatty():
            finished = {line for line, state in view.rows if state.name == "finished"}
            lines = [view.summary, *view.text.splitlines()]
            print_text(redrawn(lines, finished, shutil.get_terminal_size()))
            if over and len(lines) >= shutil.get_terminal_size().lines:
                print_text(view.text)
        elif not told:
            print_text(f"{view.summary}\n{view.text}")
        else:
            changed = [line for (line, _), new, old in zip(view.rows, now, told, strict=True) if new != old]
            results = view.comparisons if over else []
            print_text("\n".join([view.summary, *changed, *results])) if changed or results else None
        told = now
        if over:
            return view.states
        time.sleep(REFRESH_SECONDS)


def cancel(path: Path) -> str:
    """Ask the jobs of unfinished points of a folder to stop, and wait until they have; returns the table of the points.

    Raises:
        UserError: if the request fails, or if jobs have not ended in time.
    """
    find(path)
    with only_writer(path):  # else a command that is submitting would go on to do so
        sweep, indices = find(path)
        _ask_to_stop(sweep, indices)
    deadline = time.monotonic() + CANCEL_TIMEOUT_SECONDS
    while not all((point_states := states(sweep))[index].over for index in indices) and time.monotonic() < deadline:
        time.sleep(1)
    update_parent(sweep, point_states)
    if remaining := [index for index in indices if not point_states[index].over]:
        jobs = ", ".join(str(sweep.points[index].job) for index in remaining)
        if unknown := [point_states[index].detail for index in remaining if point_states[index].name == "unknown"]:
            raise UserError(f"jobs that were asked to stop, but may not have ended: {jobs} ({unknown[0]})")
        raise UserError(f"jobs that have not ended after {CANCEL_TIMEOUT_SECONDS:.0f} s: {jobs}")
    return f"{printable(str(path))}\n{table(sweep, point_states, indices)}"


def _ask_to_stop(sweep: Sweep, indices: Sequence[int]) -> None:
    point_states = states(sweep)
    alive = [sweep.points[index] for index in indices if not point_states[index].over]
    if sweep.executor == "slurm":
        try:
            slurm_job.cancel([str(point.job) for point in alive])
        except slurm_job.NoAnswer as error:  # or they have ended meanwhile
            if not all(states(sweep)[index].over for index in indices):
                raise UserError(f"SLURM does not accept the request ({error}): try again") from error
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
    _check_retry(find(path)[0], options)
    with only_writer(path):
        sweep, indices = find(path)
        sweep.launcher |= options
        check_launcher(sweep.launcher)
        retried = _to_retry(sweep, indices)
        if adopt(sweep, retried):
            sweep.save()
            retried = _to_retry(sweep, retried)
        changes = code_changes(sweep.code, code_version(), checksums_file(sweep.path, sweep.code))
        if retried and changes:
            log.warning("the jobs run the code as it is now, which has changed since the last submission: %s", changes)
        submit(sweep, retried)
    point_states = states(sweep)
    update_parent(sweep, point_states)
    return f"submitted {plural(len(retried), 'job')}\n{table(sweep, point_states, indices)}\n{next_commands(sweep)}"


def _to_retry(sweep: Sweep, indices: Sequence[int]) -> list[int]:
    point_states = states(sweep)
    return [i for i in indices if point_states[i].unsuccessful and point_states[i].name != "damaged"]


def _check_retry(sweep: Sweep, options: Mapping[str, Any]) -> None:
    if not (sweep.path / FILE).is_file():
        raise UserError(f"{sweep.path} belongs to no sweep: type its command again, it continues\n  {sweep.command}")
    if (sweep.path / FILE).stat().st_uid != os.getuid():
        raise UserError(f"{sweep.path} is of another user, whose commands would run as yours: if you trust it, type "
                        f"its command in {sweep.cwd}\n  {sweep.command}")  # fmt: skip
    if sweep.executor == "basic":
        raise UserError(f"{sweep.path} ran without jobs: type its command again, it continues\n  {sweep.command}")
    if unknown := sorted(options.keys() - sweep.launcher.keys()):
        known = ", ".join(sorted(sweep.launcher))
        raise UserError(f"there is no launcher option {unknown[0]}; there are: {known}")
