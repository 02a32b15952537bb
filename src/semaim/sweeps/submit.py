"""Submits the points of a sweep as jobs, or runs them here."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from semaim.config.follow_ups import with_parent
from semaim.config.messages import print_error
from semaim.config.naming import differences
from semaim.config.run_spec import RunSpec
from semaim.core.files import writable, writing
from semaim.core.formatting import plural, program, relative_to_cwd
from semaim.core.locks import one_at_a_time
from semaim.core.slurm_job import output_of
from semaim.errors import Interrupted, UserError
from semaim.lifecycle import stored_result
from semaim.runs.folder import RunFolder
from semaim.sweeps.batch_script import executor_options, parameters, plain
from semaim.sweeps.code_copy import fix_code
from semaim.sweeps.job import PointJob, record_failure, run_point
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.sweep import FILE, Point, Sweep

log = logging.getLogger(__name__)


def to_submit(sweep: Sweep, runs: Sequence[Sequence[RunSpec]], previous: Sequence[PointState] | None) -> list[int]:
    """Indices of the points that need a job: those that are neither finished nor have a live job.

    Args:
        sweep: the sweep.
        runs: the runs of each point, as they are composed now.
        previous: the states of the points; None if none has a job.

    Raises:
        UserError: if the run folder or the live job of a point has another configuration.
    """
    indices = []
    for index, (point, specs) in enumerate(zip(sweep.points, runs, strict=True)):
        if previous is not None and point.job is not None and not previous[index].over:
            _check_same(sweep, point, specs)
        elif not all(stored_result(RunFolder(Path(spec.cfg.run_dir)), spec.config) is not None for spec in specs):
            point.folder.check_config(specs[0].config)
            indices.append(index)
    return indices


def _check_same(sweep: Sweep, point: Point, specs: Sequence[RunSpec]) -> None:
    for before, now in zip(sweep.runs(point), specs, strict=False):
        if changes := differences(before.config, now.config):
            cancel = program("cancel", point.sweep or sweep.path)
            raise UserError(
                f"job {point.job} of {point.name} was submitted with another configuration:\n  "
                + "\n  ".join(changes)
                + f"\nCancel it first ({cancel}), or go back to the configuration it was submitted with"
            )


def adopt(sweep: Sweep, indices: Sequence[int]) -> bool:
    """Give points the live jobs that other sweeps beside this one have for the same runs; returns if there are any."""
    wanted = {sweep.points[index].place: sweep.points[index] for index in indices}
    for file in sorted(sweep.path.parent.glob(f"*/{FILE}")):
        if not wanted or file.parent == sweep.path:
            continue
        try:
            other = Sweep.load(file.parent)
        except UserError as error:
            log.warning("%s", error)
            continue
        shared = [index for index, point in enumerate(other.points) if point.job and point.place in wanted]
        if other.executor == "basic" or not shared:
            continue
        other_states = states(other)
        for index in shared:
            theirs = other.points[index]
            if not other_states[index].over and (point := wanted.pop(theirs.place, None)) is not None:
                if other.executor != sweep.executor:
                    raise UserError(f"{point.run_dir} has a job that is not over ({theirs.job}, of {other.path}): wait "
                                    f"for it, or {program('cancel', other.path)}")  # fmt: skip
                point.take_over(theirs, theirs.sweep or str(other.path))
        if adopted := sum(point.sweep == str(other.path) for point in sweep.points):
            log.info("%s under way as jobs of %s", plural(adopted, "run"), relative_to_cwd(other.path))
    return len(wanted) < len(indices)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Wait until no other command submits or cancels jobs of the sweeps beside this one, and let none do so meanwhile.

    Commands of users who may not write there do not wait.

    Raises:
        UserError: if the other one takes too long.
    """
    if path.exists() and not writable(path.absolute().parent):
        yield
        return
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.absolute().parent / ".submission.lock", "it submits or cancels jobs"):
        yield


def submit(sweep: Sweep, indices: Sequence[int], runs: Sequence[Sequence[RunSpec]] | None = None) -> None:
    """Submit points as job arrays, and their follow-up runs as arrays for each kind of evaluation.

    Args:
        sweep: the sweep.
        indices: of the points.
        runs: the runs of each point of the sweep; None for those of the last submission.

    Raises:
        UserError: if the scheduler rejects them.
    """
    if not indices:
        return
    sent = {index: sweep.runs(sweep.points[index]) if runs is None else runs[index] for index in indices}
    copied = sweep.snapshot if sweep.snapshot is not None else sweep.executor == "slurm"
    sweep.code, sweep.copied = fix_code(sweep.path, [spec.config for specs in sent.values() for spec in specs], copied)
    for index, specs in sent.items():
        sweep.points[index].sweep = None
        sweep.store_runs(sweep.points[index], specs)
    before = {index: sweep.points[index].job for index in indices}
    try:
        _submit_arrays(sweep, indices)
    except UserError as error:  # such as a limit on the number of jobs
        if submitted := [index for index in indices if sweep.points[index].job != before[index]]:
            rest = f"{len(submitted)} of {plural(len(indices), 'job')} were submitted; later submit the rest with"
            raise UserError(f"{error}; {rest} {program('retry', '--failed', sweep.path)}") from error
        raise


def _submit_arrays(sweep: Sweep, indices: Sequence[int]) -> None:
    first = [index for index in indices if sweep.points[index].after not in indices]
    ready = [index for index in first if _dependency(sweep, sweep.points[index]) is None]
    size = max_array_size() if sweep.executor == "slurm" else len(indices)
    arrays = [ready[start : start + size] for start in range(0, len(ready), size)]
    for array in arrays:
        _submit_with_followers(sweep, array, indices, len(arrays))
    for index in indices:
        if index not in ready and sweep.points[index].after not in ready:
            _submit_array(sweep, [index], _dependency(sweep, sweep.points[index]))


def _submit_with_followers(sweep: Sweep, ready: Sequence[int], indices: Sequence[int], arrays: int) -> None:
    """Submit points as one of several arrays, and those after them: the n-th depends on the n-th of that array."""
    _submit_array(sweep, ready, None, arrays)
    followers = [[index for index in indices if sweep.points[index].after == before] for before in ready]
    of_array = (sweep.points[ready[0]].job or "").split("_")[0]
    for array in zip_longest(*followers):
        present = [index for index in array if index is not None]
        if len(present) == len(ready):
            depends = f"aftercorr:{of_array}" if len(present) > 1 else f"afterok:{of_array}"
            _submit_array(sweep, present, depends, arrays)
            continue
        for index in present:
            _submit_array(sweep, [index], _dependency(sweep, sweep.points[index]))


def max_array_size() -> int:
    """The largest array that SLURM accepts."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", output_of("scontrol", "show", "config") or "")
    return max(1, int(found[1])) if found else 1000


def _dependency(sweep: Sweep, point: Point) -> str | None:
    """SLURM's dependency of a point, if it has one."""
    if point.after is None or sweep.executor != "slurm":
        return None
    before = sweep.points[point.after]
    return None if before.folder.state() == "finished" else f"afterok:{before.job}"


def _submit_array(sweep: Sweep, indices: Sequence[int], dependency: str | None, arrays: int = 1) -> None:
    if not indices:
        return
    from submitit.core.utils import FailedJobError

    executor = executor_of(sweep, dependency)
    if arrays > 1 and (limit := sweep.launcher.get("array_parallelism")):  # they share what may run at once
        executor.update_parameters(slurm_array_parallelism=max(1, limit // arrays))
    points = [PointJob(str(sweep.path), index, str(sweep.stored_runs(sweep.points[index]))) for index in indices]
    with clean_environment(sweep), _local_jobs_outlive_ctrl_c(sweep):
        try:
            jobs = executor.submit_array(points)
        except FailedJobError as error:
            raise UserError(f"SLURM does not accept the jobs: {str(error).strip()}") from error
    before = [sweep.points[index].job for index in indices]
    try:
        for index, job in zip(indices, jobs, strict=True):
            sweep.points[index].job = job.job_id
        sweep.save()
    except BaseException:  # a full disk, or Ctrl-C: nobody would know of these jobs
        for index, job, former in zip(indices, jobs, before, strict=True):
            sweep.points[index].job = former
            job.cancel(check=False)
        raise


def executor_of(sweep: Sweep, dependency: str | None) -> Any:
    """submitit's executor, which writes the batch script."""
    from submitit import AutoExecutor

    executor = AutoExecutor(cluster=sweep.executor, **executor_options(sweep))
    executor.update_parameters(**parameters(sweep, dependency))
    return executor


@contextmanager
def clean_environment(sweep: Sweep) -> Iterator[None]:
    """Remove the variables of a surrounding job, and those that would override the launcher's options."""
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        if sweep.executor == "local" and sweep.copied is not None:  # as the batch script does for SLURM
            places = [str(plain(Path(sweep.copied))), *filter(None, [os.environ.get("PYTHONPATH")]), sweep.cwd]
            os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(places)}
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


def run_here(sweep: Sweep, indices: Sequence[int], runs: Sequence[Sequence[RunSpec]], is_main: bool) -> None:
    """Execute points one after the other in this process. A failed run does not affect the others.

    Args:
        sweep: the sweep.
        indices: of the points.
        runs: the runs of each point of the sweep.
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
            first, *others = runs[index]
            run_point([first if point.parent is None else with_parent(first, point.parent), *others])
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
