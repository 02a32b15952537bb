"""Submits the points of a sweep as jobs, or runs them here, and waits for them."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semaim.config.messages import print_error
from semaim.errors import Interrupted, UserError
from semaim.lifecycle import stored_result
from semaim.runs.folder import RunFolder
from semaim.sweeps.job import PointJob, note_failure, run_point
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.sweep import Point, Sweep, labels

log = logging.getLogger(__name__)
COMMON = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
COMMON |= {"stderr_to_stdout"}  # submitit's options for every kind of executor
POLL_SECONDS = (2.0, 15.0)  # at first, and after some minutes


def to_submit(sweep: Sweep, old: Sequence[PointState] | None) -> list[int]:
    """The points that need a job: all but those that are finished, and those that a job still works on."""
    return [
        number
        for number, point in enumerate(sweep.points)
        if not (old is not None and point.job is not None and not old[number].over) and not _finished(sweep, point)
    ]


def _finished(sweep: Sweep, point: Point) -> bool:
    configs = [spec.config for spec in sweep.compose(point)]
    return all(stored_result(RunFolder(Path(config["run_dir"])), config) is not None for config in configs)


def submit(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Submit points as one job array, and what depends on them as one more for each kind of evaluation.

    Raises:
        UserError: if the scheduler refuses.
    """
    first = [number for number in numbers if sweep.points[number].after not in numbers]
    ready = [number for number in first if _dependency(sweep, sweep.points[number]) is None]
    _submit_array(sweep, ready, None)
    rest = [number for number in numbers if number not in ready]
    for array in _arrays_after(sweep, ready, rest):
        of_array = (sweep.points[ready[0]].job or "").split("_")[0]
        _submit_array(sweep, array, f"aftercorr:{of_array}" if len(array) > 1 else f"afterok:{of_array}")
        rest = [number for number in rest if number not in array]
    for number in rest:
        _submit_array(sweep, [number], _dependency(sweep, sweep.points[number]))


def _dependency(sweep: Sweep, point: Point) -> str | None:
    """What SLURM must wait for before it starts a point."""
    if point.after is None or sweep.executor != "slurm":
        return None
    before = sweep.points[point.after]
    return None if before.folder.status().get("state") == "finished" else f"afterok:{before.job}"


def _arrays_after(sweep: Sweep, ready: Sequence[int], rest: Sequence[int]) -> Iterator[list[int]]:
    """Sets of points of which the n-th depends on the n-th of an array, so that they can be an array as well."""
    followers = [[number for number in rest if sweep.points[number].after == before] for before in ready]
    for array in zip(*followers, strict=False):
        yield list(array)


def _submit_array(sweep: Sweep, numbers: Sequence[int], dependency: str | None) -> None:
    if not numbers:
        return
    import submitit

    executor = submitit.AutoExecutor(folder=sweep.jobs / "%j", cluster=sweep.executor, **_limits(sweep))
    executor.update_parameters(**_parameters(sweep, dependency))
    points = [PointJob(str(sweep.path), number) for number in numbers]
    with _clean_environment():
        try:
            jobs = executor.submit_array(points)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM does not take the jobs: {str(error).strip()}") from error
    for number, job in zip(numbers, jobs, strict=True):
        sweep.points[number].job = job.job_id
    sweep.save()


def _limits(sweep: Sweep) -> dict[str, Any]:
    return {f"{sweep.executor}_max_num_timeout": sweep.launcher.get("max_num_timeout", 0)}


def _parameters(sweep: Sweep, dependency: str | None) -> dict[str, Any]:
    """The launcher's options in submitit's words, and what every job of ours needs besides."""
    given = {key: value for key, value in sweep.launcher.items() if key not in ("submitit_folder", "max_num_timeout")}
    if sweep.executor == "local":  # a site's settings are for SLURM
        given = {key: value for key, value in given.items() if key in COMMON}
    else:
        cpus = given.get("cpus_per_task")
        more = {"requeue": True, "kill-on-invalid-dep": "yes"} | (given.get("additional_parameters") or {})
        given |= {
            "additional_parameters": more,
            # the death of one process ends all; since version 22.05 srun must be told how many CPUs its tasks have
            "srun_args": ["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])],
            "setup": [*(given.get("setup") or []), *_before_the_processes(sweep)],
            "teardown": _restart_after_death(sweep),
        }
        if dependency is not None:
            given["dependency"] = dependency
    return {key if key in COMMON else f"{sweep.executor}_{key}": value for key, value in given.items()}


def _before_the_processes(sweep: Sweep) -> list[str]:
    """What the batch script does first: it finds out where it logs to, and how much of that is of former attempts."""
    return [
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f"here={shlex.quote(str(sweep.jobs))}/$job; logged=$(stat -c %s $here/${{job}}_0_log.err)",
    ]


def _restart_after_death(sweep: Sweep) -> list[str]:
    """What the batch script does last: if a process was killed, it notes that in `deaths` and requeues the job.

    srun tells of each process how it ended, in words, and of the first one first; bash tells of srun itself. The exit
    code does not help: processes that srun had to end because of another one count in it like those that were killed.
    """
    signals = "Killed|Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point|Out Of Memory"
    return [
        "code=$?",
        "first=$(tail -c +$((logged + 1)) $here/${job}_0_log.err | grep -E 'task.*: |slurm_script: line' |"
        " grep -v Terminated | head -n 1 | cut -c 1-200)",
        f'if grep -qE \'{signals}\' <<<"$first" && [ "$(squeue -h -j $SLURM_JOB_ID -o %T)" = RUNNING ]; then',
        '  echo "${SLURM_RESTART_COUNT:-0} $(date +%FT%T) ${first#srun: error: }" >> $here/deaths',
        f"  [ $(wc -l < $here/deaths) -le {sweep.restarts} ] && scontrol requeue $SLURM_JOB_ID && sleep 300",
        "fi",
        "exit $code",
    ]


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without the variables of a job that we may be in, nor those that would overrule the launcher's options."""
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


def run_here(sweep: Sweep, numbers: Sequence[int], is_main: bool) -> None:
    """Make the runs of points one after the other in this process. One that fails does not keep the others.

    Args:
        sweep: the sweep.
        numbers: of the points.
        is_main: whether this is the first of torchrun's processes, or the only one.

    Raises:
        Interrupted: after a signal.
    """
    for number in numbers:
        point = sweep.points[number]
        point.job = f"here_{number}_{time.time_ns()}"
        if is_main:
            sweep.save()
        log.info("run %d of %d: %s", number + 1, len(sweep.points), " ".join(point.overrides))
        try:
            run_point(sweep, point)
        except Interrupted:
            raise
        except Exception as error:  # whatever it is, the next run may do better
            if is_main:
                note_failure(sweep.job_folder(point.job), error)
            print_error(error)
        if is_main:
            update_parent(sweep, states(sweep))


def wait(sweep: Sweep) -> list[PointState]:
    """Wait until every job is over, and tell of every change."""
    began = time.monotonic()
    told: dict[str, str] = {}
    while True:
        now = states(sweep)
        update_parent(sweep, now)
        for label, point, state in zip(labels(sweep), sweep.points, now, strict=True):
            if told.get(point.run_dir) != state.word and point.job is not None:
                told[point.run_dir] = state.word
                detail = f"  {state.detail}" if state.detail and state.word != "running" else ""
                log.info("%s (job %s): %s%s", label, point.job, state.word, detail)
        if all(state.over for state in now):
            return now
        time.sleep(min(POLL_SECONDS[1], max(POLL_SECONDS[0], (time.monotonic() - began) / 20)))
