"""Submits the points of a sweep as jobs, or runs them here, and waits for them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semaim.config.messages import print_error
from semaim.core.formatting import plural
from semaim.errors import Interrupted, UserError
from semaim.lifecycle import stored_result
from semaim.runs.folder import RunFolder
from semaim.sweeps.batch_script import executor_options, parameters
from semaim.sweeps.job import PointJob, record_failure, run_point
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.sweep import Point, Sweep, labels

log = logging.getLogger(__name__)
POLL_SECONDS = (2.0, 15.0)  # initially, and after some minutes


def to_submit(sweep: Sweep, previous: Sequence[PointState] | None) -> list[int]:
    """Indices of the points that need a job: those that are neither finished nor have a live job."""
    return [
        index
        for index, point in enumerate(sweep.points)
        if not (previous is not None and point.job is not None and not previous[index].over)
        and not _finished(sweep, point)
    ]


def _finished(sweep: Sweep, point: Point) -> bool:
    configs = [spec.config for spec in sweep.compose(point)]
    return all(stored_result(RunFolder(Path(config["run_dir"])), config) is not None for config in configs)


def submit(sweep: Sweep, indices: Sequence[int]) -> None:
    """Submit points as one job array, and their follow-up runs as one array for each kind of evaluation.

    Raises:
        UserError: if the scheduler rejects them.
    """
    first = [index for index in indices if sweep.points[index].after not in indices]
    ready = [index for index in first if _dependency(sweep, sweep.points[index]) is None]
    _submit_array(sweep, ready, None)
    rest = [index for index in indices if index not in ready]
    followers = [[index for index in rest if sweep.points[index].after == before] for before in ready]
    for array in zip(*followers, strict=False):  # the n-th depends on the n-th of the array before
        of_array = (sweep.points[ready[0]].job or "").split("_")[0]
        _submit_array(sweep, array, f"aftercorr:{of_array}" if len(array) > 1 else f"afterok:{of_array}")
        rest = [index for index in rest if index not in array]
    for index in rest:
        _submit_array(sweep, [index], _dependency(sweep, sweep.points[index]))


def _dependency(sweep: Sweep, point: Point) -> str | None:
    """SLURM's dependency of a point, if it has one."""
    if point.after is None or sweep.executor != "slurm":
        return None
    before = sweep.points[point.after]
    return None if before.folder.state() == "finished" else f"afterok:{before.job}"


def _submit_array(sweep: Sweep, indices: Sequence[int], dependency: str | None) -> None:
    if not indices:
        return
    import submitit

    executor = submitit.AutoExecutor(cluster=sweep.executor, **executor_options(sweep))
    executor.update_parameters(**parameters(sweep, dependency))
    points = [PointJob(str(sweep.path), index) for index in indices]
    with _clean_environment(), _local_jobs_outlive_ctrl_c(sweep):
        try:
            jobs = executor.submit_array(points)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM does not accept the jobs: {str(error).strip()}") from error
    for index, job in zip(indices, jobs, strict=True):
        sweep.points[index].job = job.job_id
    sweep.save()


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Remove the variables of a surrounding job, and those that would override the launcher's options."""
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


@contextmanager
def _local_jobs_outlive_ctrl_c(sweep: Sweep) -> Iterator[None]:
    """Let submitit's process that controls a local job ignore Ctrl-C, upon which it would kill the run."""
    if sweep.executor != "local":
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # is inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def run_here(sweep: Sweep, indices: Sequence[int], is_main: bool) -> None:
    """Execute points one after the other in this process. A failed run does not affect the others.

    Args:
        sweep: the sweep.
        indices: of the points.
        is_main: whether this is the first of torchrun's processes, or the only one.

    Raises:
        Interrupted: after a signal.
    """
    for index in indices:
        point = sweep.points[index]
        point.job = f"here_{index}_{time.time_ns()}"
        if is_main:
            sweep.save()
        log.info("run %d of %d: %s", index + 1, len(sweep.points), " ".join(point.overrides))
        try:
            run_point(sweep, point)
        except Interrupted as error:
            left = len(indices) - indices.index(index) - 1
            raise Interrupted(f"{error}; {plural(left, 'run')} of the sweep did not start") from error
        except Exception as error:  # any error: continue with the next run
            if is_main:
                record_failure(sweep.jobs / point.job, error)
            print_error(error)
        gc.collect()  # the process group of a failed run: other processes that wait in it then fail, too
        if is_main:
            update_parent(sweep, states(sweep))


def wait(sweep: Sweep) -> list[PointState]:
    """Wait until every job has ended, and log every change of state."""
    started = time.monotonic()
    logged: dict[str, str] = {}
    while True:
        point_states = states(sweep)
        update_parent(sweep, point_states)
        for label, point, state in zip(labels(sweep), sweep.points, point_states, strict=True):
            if logged.get(point.run_dir) != state.name and point.job is not None:
                logged[point.run_dir] = state.name
                detail = f"  {state.detail}" if state.detail and state.name != "running" else ""
                log.info("%s (job %s): %s%s", label, point.job, state.name, detail)
        if all(state.over for state in point_states):
            return point_states
        time.sleep(min(POLL_SECONDS[1], max(POLL_SECONDS[0], (time.monotonic() - started) / 20)))
