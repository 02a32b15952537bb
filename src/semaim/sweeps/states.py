"""How far each point of a sweep is, from its run folder and from what the scheduler says.

The run folder knows what the run did, the scheduler whether anything still works on it. Where the folder says that a
run is running and nothing works on it any more, its job died without a word: `settle` says so there and in MLflow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semaim.core import slurm_job
from semaim.core.files import read_json
from semaim.core.formatting import duration
from semaim.core.slurm_job import JobState
from semaim.runs.folder import RunFolder
from semaim.runs.journal import read
from semaim.sweeps.sweep import Point, Sweep, failure_file
from semaim.tracking.delivery import deliver
from semaim.tracking.sync import mark_ended

PointStateName = Literal[
    "pending", "starting", "running", "ending", "requeued", "finished", "failed", "killed", "vanished", "unknown"
]
OVER = ("finished", "failed", "killed", "vanished")
TAIL_BYTES = 100_000
TROUBLE = re.compile(r"error|exception|killed|cancelled|out of memory|not found", re.IGNORECASE)
# Lines by which SLURM and submitit only say that a job ended, which is known.
NO_REASON = re.compile(r"job step aborted|forcing job termination|submitit (info|error)|got sigcont", re.IGNORECASE)


@dataclass(frozen=True)
class PointState:
    """How far a point is.

    Attributes:
        word: in a word.
        detail: progress, result, reason of waiting, or last error.
        restarts: how often its job was requeued.
        result: of a finished run.
        value: of its metric.
    """

    word: PointStateName
    detail: str = ""
    restarts: int = 0
    result: dict[str, float] = field(default_factory=dict)
    value: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more by itself."""
        return self.word in OVER


def states(sweep: Sweep) -> list[PointState]:
    """How far each point is; runs that died without a word are marked as such, once."""
    seen = scheduler_states(sweep)
    found = [_state(sweep, point, seen[number]) for number, point in enumerate(sweep.points)]
    for point, state in zip(sweep.points, found, strict=True):
        if state.over:
            settle(point.folder, state)
    return found


def scheduler_states(sweep: Sweep) -> list[JobState]:
    """What the scheduler says of each point."""
    if sweep.executor == "slurm":
        by_job = slurm_job.job_states([point.job for point in sweep.points if point.job])
        return [by_job[point.job] if point.job else JobState("over") for point in sweep.points]
    if sweep.executor == "local":
        return [JobState("running" if _is_submitit(point.job) else "over") for point in sweep.points]
    launching = sweep.folder.is_held or sweep.folder.is_locked()
    return [_one_after_the_other(point, launching) for point in sweep.points]


def _one_after_the_other(point: Point, launching: bool) -> JobState:
    if point.folder.is_locked():
        return JobState("running")
    started = point.job is not None
    return JobState("waiting", "for its turn") if launching and not started else JobState("over")


def _is_submitit(process: str | None) -> bool:
    try:
        return b"submitit" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _state(sweep: Sweep, point: Point, seen: JobState) -> PointState:
    status = _status(point.folder)
    here = bool(status) and (sweep.executor != "slurm" or status.get("job") == point.job)
    if seen.state == "waiting":
        death = _death(sweep.job_folder(point.job or ""), seen.restarts - 1)
        return PointState("requeued" if seen.restarts else "pending", _joined(seen.reason, death or ""), seen.restarts)
    current = here and status.get("restarts", 0) == seen.restarts
    if seen.state == "running" and not (current and status["state"] == "finished"):
        if not current:
            return PointState("starting", seen.nodes, seen.restarts)
        word: PointStateName = "running" if status["state"] == "running" else "ending"
        return PointState(word, progress(point.folder) if word == "running" else status["error"], seen.restarts)
    if status.get("state") == "finished" and not (seen.state == "over" and _lacks_evaluations(point)):
        value = status["result"][status["metric"]]
        return PointState("finished", result_text(status), seen.restarts, status["result"] | _followed(point), value)
    if seen.state == "unknown":
        return PointState("unknown", f"{seen.reason}; the run folder says: {status.get('state', 'not begun')}")
    return _ended_badly(sweep, point, seen, status if here else {})


def _lacks_evaluations(point: Point) -> bool:
    """Whether what was to follow a run in the same job has not finished."""
    return any(_status(RunFolder(Path(place))).get("state") != "finished" for place in point.then)


def _followed(point: Point) -> dict[str, float]:
    """The results of what followed a run in the same job."""
    ended = [_status(RunFolder(Path(place))) for place in point.then]
    return {name: value for status in ended for name, value in status.get("result", {}).items()}


def _ended_badly(sweep: Sweep, point: Point, seen: JobState, status: dict[str, Any]) -> PointState:
    """The state of a run that did not finish and that nothing works on: in whose words, and why."""
    word: PointStateName
    if point.job is None:
        return PointState("killed", "never submitted")
    attempt = max(seen.restarts, status.get("restarts", 0))
    if death := _death(sweep.job_folder(point.job), attempt):
        return PointState("failed", death, seen.restarts)
    if failure := _failure(sweep.job_folder(point.job), attempt):
        return PointState("failed", failure, seen.restarts)
    if status.get("state") == "failed":
        return PointState("failed", status["error"], seen.restarts)
    if status.get("state") in ("interrupted", "vanished"):
        word = "killed" if status["state"] == "interrupted" else "vanished"
        return PointState(word, _joined(seen.reason, status["error"]), seen.restarts)
    word = "killed" if seen.reason.startswith("CANCELLED") else "vanished"
    last = "" if word == "killed" else last_trouble(sweep.job_folder(point.job))
    return PointState(word, _joined(seen.reason or "its process is gone", last), seen.restarts)


def _joined(*parts: str) -> str:
    return ": ".join(dict.fromkeys(part for part in parts if part))


def _status(folder: RunFolder) -> dict[str, Any]:
    """status.json as it is now: touching the folder makes a network file system look again."""
    try:
        os.utime(folder.path)
    except OSError:
        return {}
    return folder.status()


def settle(folder: RunFolder, state: PointState) -> None:
    """Make the run folder and MLflow say that a run is over, if they do not yet."""
    if _status(folder).get("state") not in ("running", "requeued") or folder.is_locked():
        return
    word: Literal["interrupted", "failed", "vanished"] = "vanished"
    if state.word in ("killed", "failed"):
        word = "interrupted" if state.word == "killed" else "failed"
    mark_ended(folder, word, "FAILED" if word == "failed" else "KILLED", state.detail)
    deliver(folder)


def _death(job_folder: Path, attempt: int) -> str | None:
    """Which process was killed in an attempt, in srun's words (see launch.py)."""
    path = job_folder / "deaths"
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines or lines[-1].split()[0] != str(attempt):
        return None
    return lines[-1].split(maxsplit=2)[2] + (f", for the {len(lines)}th time" if len(lines) > 1 else "")


def _failure(job_folder: Path, attempt: int) -> str | None:
    """The error of the process that failed first in an attempt (see job.py)."""
    if not (failure := read_json(failure_file(job_folder, attempt))):
        return None
    where = f" (process {failure['process']} on {failure['host']})" if failure["process"] else ""
    return str(failure["error"]) + where


def last_trouble(job_folder: Path) -> str:
    """The last line of what a job's processes printed that tells of trouble."""
    found: list[tuple[float, str]] = []
    for path in [*job_folder.glob("*.err"), *job_folder.glob("*.out")]:
        lines = [line for line in _tail(path).splitlines() if TROUBLE.search(line) and not NO_REASON.search(line)]
        if lines:
            found.append((path.stat().st_mtime, lines[-1].strip()))
    return max(found)[1] if found else ""


def _tail(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def progress(folder: RunFolder) -> str:
    """Step, images per second and time left of a running run, from its journal."""
    status, step, rate = folder.status(), 0, 0.0
    for line in journal_tail(folder):
        if "train/images_per_second" in line.get("metrics", ()):
            step, rate = line["step"], line["metrics"]["train/images_per_second"]
    step, last = max(step, status.get("step", 0)), status.get("last_step")
    if last is None:
        return "under way"
    left = f", {rate:.3g} images/s, ETA {duration((last - step) * status['batch_size'] / rate)}" if rate else ""
    return f"step {step}/{last}{left}"


def journal_tail(folder: RunFolder) -> Sequence[dict[str, Any]]:
    """The last lines of a journal."""
    if not folder.journal.is_file():
        return []
    start = max(0, folder.journal.stat().st_size - TAIL_BYTES)
    if start:
        with open(folder.journal, "rb") as file:
            file.seek(start)
            start += len(file.readline())
    return [line for _, line in read(folder.journal, start)]


def result_text(status: dict[str, Any]) -> str:
    """The metric of a finished run, and what else fits; of what was measured before and after, what came after."""
    result: dict[str, float] = status["result"]
    others = [name for name in result if name != status["metric"] and not name.endswith(("_std", "_before"))]
    return "  ".join(f"{name} {result[name]:.4g}" for name in [status["metric"], *others[:3]])
