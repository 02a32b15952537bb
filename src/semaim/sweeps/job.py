"""Execution of a point inside a job, and the end of a job.

SLURM sends SIGUSR2 before the time limit, and SIGTERM on preemption or cancellation. In both cases all processes finish
the step and the first one saves (see `semaim.core.signals`). After SIGUSR2 the first process then asks SLURM to requeue
the job, with submitit's handler; after SIGTERM SLURM requeues the job itself, or the job was cancelled.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semaim.config.messages import EXIT_INTERRUPTED, exits_on_error, explain
from semaim.core import interpreter
from semaim.core.files import if_possible, write_json, writing
from semaim.core.signals import StopRequest
from semaim.core.slurm_job import this_job
from semaim.errors import Interrupted
from semaim.runs.provenance import code_version
from semaim.sweeps.sweep import Point, Sweep, failure_file
from semaim.tracking.delivery import deliver
from semaim.tracking.sync import mark_ended

log = logging.getLogger(__name__)
WAIT_FOR_JOB_END_SECONDS = 300
WAIT_FOR_CONTROLLER_SECONDS = (*[10] * 12, 0)  # between attempts: SLURM's controller may be restarting


def run_point(sweep: Sweep, point: Point, stop: StopRequest | None = None) -> float:
    """Execute the run of a point and its follow-up runs in the same job; returns the metric of the first one.

    Args:
        sweep: the sweep.
        point: one of its points.
        stop: a signal handler that exists already.

    Raises:
        Interrupted: after a signal, when the first process has saved everything.
    """
    from semaim.lifecycle import execute, session  # imports torch, after `interpreter.prepare`

    specs = sweep.compose(point)
    with session(specs[0].cfg.device, stop) as (processes, stop):
        now = code_version()  # jobs use the code at the time of their start, not of their submission
        if sweep.code and any(sweep.code[key] != now[key] for key in now):
            log.warning("the code has changed since this was submitted: commit %s then, %s now", sweep.code, now)
        try:
            return [execute(each, processes, stop) for each in specs][0]  # noqa: RUF015 - executes all of them
        except Interrupted:
            with suppress(RuntimeError):  # SLURM ends all processes when one exits
                processes.barrier()
            if stop.name == "SIGUSR2" and this_job():
                _requeue(stop, point)
            raise


@dataclass
class PointJob:
    """A point of a sweep, as submitit starts it in every process of a job.

    Attributes:
        sweep: folder of the sweep.
        number: index of the point. Submitted jobs hold this field pickled, so it keeps its name.
    """

    sweep: str
    number: int

    def __call__(self) -> float:
        stop = StopRequest()  # first, so that no signal is lost while torch is imported
        interpreter.prepare()
        os.environ["HYDRA_FULL_ERROR"] = "1"
        sweep = Sweep.load(Path(self.sweep))
        try:
            with exits_on_error(functools.partial(_record_failure_of_this_job, sweep)):
                metric = run_point(sweep, sweep.points[self.number], stop)
        finally:
            stop.ignore()  # a run that is over must not be requeued, nor fail
        interpreter.announce_exit(0)
        return metric

    def checkpoint(self) -> Any:
        """The call that submitit starts when the job is requeued: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _record_failure_of_this_job(sweep: Sweep, error: BaseException) -> None:
    from submitit import JobEnvironment

    job = JobEnvironment()
    record_failure(sweep.jobs / job.job_id, error, job.global_rank)


def record_failure(job_folder: Path, error: BaseException, rank: int = 0) -> None:
    """Store the error of the process that failed first; later errors are consequences of it."""
    message = explain(error) or f"{type(error).__name__}: {error}"
    path = failure_file(job_folder, int(this_job().get("restarts", 0)))
    with if_possible():  # the error itself is printed
        with writing(path):
            job_folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, {"error": message, "process": rank, "host": socket.gethostname()})


def _requeue(stop: StopRequest, point: Point) -> None:
    """Let submitit requeue the job, which ends this process; raise Interrupted if it timed out too often."""
    from submitit.core.utils import UncompletedJobError

    handler = stop.previous[signal.SIGUSR2]
    assert callable(handler)
    for seconds in WAIT_FOR_CONTROLLER_SECONDS:
        try:
            handler(signal.SIGUSR2, None)  # exits in the first process
            break
        except (subprocess.SubprocessError, OSError) as error:
            log.warning("SLURM does not requeue this job (%s)", error)
            time.sleep(seconds)
        except UncompletedJobError as error:
            message = f"{error} Raise hydra.launcher.max_num_timeout and retry"
            mark_ended(point.folder, "interrupted", message)
            deliver(point.folder)
            raise Interrupted(message) from error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM sends it when the job is requeued
    time.sleep(WAIT_FOR_JOB_END_SECONDS)  # a process that exits before the first one has requeued the job kills the job
    sys.exit(EXIT_INTERRUPTED)
