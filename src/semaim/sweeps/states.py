"""States of the points of a sweep, from their run folders and from the scheduler.

The run folder has the progress of the run, the scheduler the state of its job. If the folder says that the run is
running or requeued but its job has ended, `states` records the end in the folder and in MLflow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from typing_extensions import TypedDict

from semaim.core import locks, slurm_job
from semaim.core.files import if_possible, read_json, writable
from semaim.core.formatting import duration, spent_of
from semaim.core.headline import headlines_text, measured
from semaim.core.slurm_job import NOT_LISTED, JobState
from semaim.errors import DamagedFile, NotReadable
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Line, read
from semaim.runs.status import OVER, RunState, Status, StoredState
from semaim.sweeps.sweep import Point, Sweep, failure_file
from semaim.tracking.delivery import deliver
from semaim.tracking.sync import mark_ended

TAIL_BYTES = 100_000
ERROR_LINE = re.compile(r"error|exception|killed|cancelled|out of memory|not found", re.IGNORECASE)
# Lines by which SLURM and submitit only report the end of a job.
JOB_END_LINE = re.compile(
    r"job step aborted|forcing job termination|submitit (info|error)|got sigcont|exited with exit code", re.IGNORECASE
)


@dataclass(frozen=True)
class PointState:
    """The state of a point.

    Attributes:
        name: of the state.
        detail: progress, result, reason of waiting, or last error.
        restarts: number of times that its job was requeued.
        result: of its finished runs: the pretraining, and what follows it in the same job.
        measured: the same by the names in MLflow (`semaim.core.headline.measured`).
        value: of the metric of a finished run.
    """

    name: RunState
    detail: str = ""
    restarts: int = 0
    result: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    value: float | None = None

    @property
    def over(self) -> bool:
        """Whether the state is final unless the point is submitted again."""
        return self.name in OVER

    @property
    def unsuccessful(self) -> bool:
        """Whether the point is over without a result."""
        return self.over and self.name != "finished"


def states(sweep: Sweep) -> list[PointState]:
    """The state of each point; runs that ended without recording it are marked as such, once."""
    jobs = scheduler_states(sweep)
    point_states = []
    for point, job in zip(sweep.points, jobs, strict=True):
        try:
            point_states.append(with_results(_state(sweep, point, job), point))
        except (NotReadable, PermissionError) as error:
            point_states.append(PointState("unknown", str(error)))
        except DamagedFile as error:
            point_states.append(PointState("damaged", str(error)))
    for point, state in zip(sweep.points, point_states, strict=True):
        if state.name in ("failed", "interrupted", "vanished"):
            _record_end(sweep, point, state.name, state.detail)
    return point_states


def with_results(state: PointState, point: Point) -> PointState:
    """The state with the results of those runs of the point that are finished."""
    result: dict[str, float] = {}
    found: dict[str, float] = {}
    for status in (folder.status() for folder in (point.folder, *point.follow_ups)):
        if status.get("state") == "finished":
            result |= status["result"]
            found |= measured(status["metric"], status["result"])
    detail = headlines_text(found, result) if state.name == "finished" else state.detail
    return replace(state, detail=detail, result=result, measured=found)


def scheduler_states(sweep: Sweep) -> list[JobState]:
    """The state of each point's job."""
    if sweep.executor == "slurm":
        by_job = slurm_job.job_states({point.job for point in sweep.points if point.job})
        if os.geteuid() not in (0, sweep.path.stat().st_uid):  # SLURM may hide the jobs of others (PrivateData)
            hidden = JobState("unknown", "SLURM shows no such job to you")
            by_job = {job: hidden if state.reason == NOT_LISTED else state for job, state in by_job.items()}
        return [by_job[point.job] if point.job else JobState("over") for point in sweep.points]
    if sweep.executor == "local":
        return [JobState("running" if _is_local_job(point) else "over") for point in sweep.points]
    return _basic_states(sweep)


def _basic_states(sweep: Sweep) -> list[JobState]:
    """The same for points that one process executes in turn, which may be this one, between two points."""
    elsewhere = sweep.folder.is_locked()
    started = [point for point in sweep.points if point.job is not None]
    # by the time in nanoseconds at the end of the job's name (`semaim.sweeps.submit.run_here`)
    latest = max(started, key=lambda point: str(point.job).rpartition("_")[2], default=None)
    current = latest if elsewhere else None

    def state(point: Point) -> JobState:
        if point is current or point.folder.is_locked():
            return JobState("running")
        if point.job is None and (elsewhere or sweep.folder.is_held):
            return JobState("waiting", "for earlier runs")
        return JobState("over")

    return [state(point) for point in sweep.points]


def _is_local_job(point: Point) -> bool:
    """Whether submitit's process of a point runs; on another machine, or of another user, only the locks tell."""
    with suppress(OSError):
        if b"submitit" in Path(f"/proc/{point.job}/cmdline").read_bytes():
            return True
    return any(folder.is_locked() for folder in (point.folder, *point.follow_ups))


def _state(sweep: Sweep, point: Point, job_state: JobState) -> PointState:
    status = _status(point.folder)
    current_job = bool(status) and (sweep.executor != "slurm" or status.get("job") == point.job)
    if job_state.state == "waiting":
        killed = _killed_process(sweep.job_folder(point), job_state.restarts - 1)
        return PointState(
            "requeued" if job_state.restarts else "pending", _join(job_state.reason, killed or ""), job_state.restarts
        )
    current_attempt = current_job and status.get("restarts", 0) >= job_state.restarts
    of_its_own = sweep.path == point.folder.path  # its job, a script of the user, may go on without it
    if job_state.state == "running" and of_its_own and current_attempt and not point.folder.is_locked():
        job_state = JobState("over", restarts=job_state.restarts)
    follow_ups = {folder.path.name: _status(folder) for folder in point.follow_ups}
    unfinished = [name for name, each in follow_ups.items() if each.get("state") != "finished"]
    if job_state.state == "running" and not current_attempt:
        awaited = locks.awaited(point.folder.path / ".lock")
        waits = f"waits for {awaited} to leave the run folder" if awaited else ""
        return PointState("starting", _join(job_state.reason, job_state.nodes, waits), job_state.restarts)
    doing = _doing(point, status, unfinished) if current_attempt else ""
    if job_state.state == "running" and doing:
        return PointState("running" if status["state"] == "running" else "ending", doing, job_state.restarts)
    if status.get("state") == "finished" and not unfinished:
        value = status["result"][status["metric"]]
        return PointState("finished", restarts=job_state.restarts, value=value)
    if job_state.state == "ending":
        return PointState("ending", _join(job_state.reason, doing), job_state.restarts)
    if job_state.state == "suspended":
        return PointState("suspended", job_state.reason, job_state.restarts)
    if job_state.state == "unknown":
        return PointState("unknown", f"{job_state.reason}; the run folder says: {status.get('state', 'new')}")
    return _unsuccessful_state(sweep, point, job_state, status if current_job else {})


def _doing(point: Point, status: Status, unfinished: Sequence[str]) -> str:
    """What a point whose job is running still does; empty if nothing is left to do."""
    if status["state"] == "running":
        return progress(point.folder)
    if status["state"] != "finished":
        return status.get("error", "")
    if unfinished:
        return f"finished, then {unfinished[0]}"
    sending = any(folder.is_locked() for folder in (point.folder, *point.follow_ups))
    return "finished, sends its results to MLflow" if sending else ""


def _unsuccessful_state(sweep: Sweep, point: Point, job_state: JobState, status: Status) -> PointState:
    """The state of a run that did not finish and whose job has ended, with the most specific reason."""
    if point.job is None and not status:
        return PointState("new", "never submitted")
    stored, job_folder = status.get("state"), sweep.job_folder(point)
    attempt = max(job_state.restarts, status.get("restarts", 0))
    if error := _killed_process(job_folder, attempt) or _failure(job_folder, attempt):
        return PointState("failed", error, job_state.restarts)
    if stored == "failed":
        return PointState("failed", status.get("error", ""), job_state.restarts)
    if stored == "interrupted" or stored == "vanished":
        return PointState(stored, _said_once(job_state.reason, status.get("error", "")), job_state.restarts)
    if job_state.reason.startswith("CANCELLED"):
        return PointState("interrupted", job_state.reason, job_state.restarts)
    if job_state.reason == NOT_LISTED and not status and not any(job_folder.glob("*_log.*")):  # SLURM's first files
        return PointState("interrupted", "CANCELLED before it started")
    last = last_error_line(job_folder)
    if job_state.reason.startswith("FAILED") and last.startswith("error: "):  # not stored, since the disk is full
        return PointState("failed", last.removeprefix("error: "), job_state.restarts)
    return PointState("vanished", _join(job_state.reason or "its process is gone", last), job_state.restarts)


def _said_once(reason: str, error: str) -> str:
    """SLURM's state and the stored error, which an earlier look may have written with that state."""
    word = reason.replace(":", " ").replace(",", " ").split(" ")[0]
    return error if error and (reason == NOT_LISTED or word in error) else _join(reason, error)


def _join(*parts: str) -> str:
    return ": ".join(dict.fromkeys(part for part in parts if part))


def _status(folder: RunFolder) -> Status:
    """The current status.json: touching the folder makes a network file system refresh it."""
    with suppress(OSError):  # the folder of another user
        os.utime(folder.path)
    return folder.status()


def _record_end(sweep: Sweep, point: Point, state: StoredState, error: str) -> None:
    """Record the end of a run in its folder and in MLflow, unless it is recorded already or of another user.

    Of a run that another job, of another sweep, has gone on with, nothing is known.
    """
    folder, status = point.folder, _status(point.folder)
    elsewhere = sweep.executor == "slurm" and status.get("job", point.job) != point.job
    if status.get("state") in ("running", "requeued") and not (
        elsewhere or folder.is_locked() or not writable(folder.path)
    ):
        with if_possible():
            mark_ended(folder, state, error)
            deliver(folder)


def _killed_process(job_folder: Path, attempt: int) -> str | None:
    """The killed process of an attempt, in srun's words (see `semaim.sweeps.batch_script`)."""
    path = job_folder / "deaths"
    lines = [line.split(maxsplit=2) for line in _tail(path).splitlines()] if path.is_file() else []
    if not lines or len(lines[-1]) < 3 or lines[-1][0] != str(attempt):
        return None
    return lines[-1][2] + (f", for the {len(lines)}th time" if len(lines) > 1 else "")


class Failure(TypedDict):
    """Content of failure_<attempt>.json."""

    error: str
    process: int
    host: str


def _failure(job_folder: Path, attempt: int) -> str | None:
    """The error of the process that failed first in an attempt (see `semaim.sweeps.job`)."""
    if (failure := read_json(failure_file(job_folder, attempt), Failure)) is None:
        return None
    return failure["error"] + (f" (process {failure['process']} on {failure['host']})" if failure["process"] else "")


def last_error_line(job_folder: Path) -> str:
    """The last output line of a job's processes that looks like an error."""
    errors: list[tuple[float, str]] = []
    for path in [*job_folder.glob("*.err"), *job_folder.glob("*.out")]:
        lines = [line for line in _tail(path).splitlines() if ERROR_LINE.search(line) and not JOB_END_LINE.search(line)]
        if lines:
            errors.append((path.stat().st_mtime, lines[-1].strip()))
    return max(errors)[1] if errors else ""


def _tail(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def progress(folder: RunFolder) -> str:
    """Step, speed, remaining time and device hours of a running run, from its journal."""
    status, step, found = folder.status(), 0, dict[str, float]()
    for line in journal_tail(folder):
        if "train/images_per_second" in line.get("metrics", ()):
            step, found = line["step"], line["metrics"]
    step, last = max(step, status.get("step", 0)), status.get("last_step")
    if last is None:
        return "under way"
    parts, rate = [f"step {step}/{last}"], found.get("train/images_per_second")
    if rate and (seconds := (last - step) * status.get("batch_size", 0) / rate):
        parts += [f"{rate:.3g} images/s", f"ETA {duration(seconds)}"]
    if "train/device_hours_projected" in found:
        parts.append(f"{spent_of(found['train/device_hours'], found['train/device_hours_projected'])} device-hours")
    return ", ".join(parts)


def journal_tail(folder: RunFolder) -> Sequence[Line]:
    """The last lines of a journal."""
    if not folder.journal.is_file():
        return []
    start = max(0, folder.journal.stat().st_size - TAIL_BYTES)
    if start:
        with open(folder.journal, "rb") as file:
            file.seek(start)
            start += len(file.readline())
    return [line for _, line in read(folder.journal, start)]
