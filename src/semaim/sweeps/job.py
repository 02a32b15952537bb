"""Execution of a point inside a job, and the end of a job.

SLURM sends SIGUSR2 before the time limit, and SIGTERM on preemption or cancellation. In both cases all processes finish
the step and the first one saves (see `semaim.core.signals`). After SIGUSR2 the first process then asks SLURM to requeue
the job, with submitit's handler; after SIGTERM SLURM requeues the job itself, or the job was cancelled.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semaim.config.messages import EXIT_INTERRUPTED, exits_on_error, explain
from semaim.config.run_spec import RunSpec
from semaim.core import interpreter
from semaim.core.files import if_possible, write_json, writing
from semaim.core.signals import StopRequest
from semaim.core.slurm_job import this_job
from semaim.errors import Interrupted
from semaim.runs.folder import RunFolder
from semaim.runs.provenance import code_changes, code_version
from semaim.sweeps.code_copy import checksums_file
from semaim.sweeps.sweep import Sweep, failure_file, read_submitted
from semaim.tracking.delivery import deliver
from semaim.tracking.sync import mark_ended

log = logging.getLogger(__name__)
WAIT_FOR_JOB_END_SECONDS = 300
WAIT_FOR_CONTROLLER_SECONDS = (*[10] * 12, 0)  # between attempts: SLURM's controller may be restarting


def run_point(specs: Sequence[RunSpec], stop: StopRequest | None = None, warning: str | None = None) -> float:
    """Execute the run of a point and its follow-up runs in the same job; returns the metric of the first one.

    Args:
        specs: these runs.
        stop: a signal handler that exists already.
        warning: for the log.

    Raises:
        Interrupted: after a signal, when the first process has saved everything.
    """
    from semaim.lifecycle import execute, session  # imports torch, after `interpreter.prepare`

    cfg = specs[0].cfg
    with session(cfg.device, cfg.runs_dir, stop) as (processes, stop):
        if warning is not None:
            log.warning(warning)
        try:
            return [execute(each, processes, stop) for each in specs][0]  # noqa: RUF015 - executes all of them
        except Interrupted:
            with suppress(RuntimeError):  # SLURM ends all processes when one exits
                processes.barrier()
            if stop.name == "SIGUSR2" and stop.will_be_requeued():  # by submitit's handler
                _requeue(stop, RunFolder(Path(cfg.run_dir)))
            raise


@dataclass
class PointJob:
    """A point of a sweep, as submitit starts it in every process of a job.

    Attributes:
        sweep: folder of the sweep.
        number: index of the point in a sweep whose runs were not stored. Submitted jobs hold these fields pickled.
        submitted: file of the runs (`semaim.sweeps.sweep.Submitted`).
    """

    sweep: str
    number: int
    submitted: str = ""

    def __call__(self) -> float:
        stop = StopRequest()  # first, so that no signal is lost while torch is imported
        interpreter.prepare()
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            with exits_on_error(_record_failure_of_this_job):
                specs, warning = self._runs()
                metric = run_point(specs, stop, warning)
        finally:
            stop.ignore()  # a run that is over must not be requeued, nor fail
        interpreter.announce_exit(0)
        return metric

    def _runs(self) -> tuple[list[RunSpec], str | None]:
        """The runs as they were submitted, and a warning if the code is not."""
        if not self.submitted or (submitted := read_submitted(Path(self.submitted))) is None:
            sweep = Sweep.load(Path(self.sweep))
            return sweep.runs(sweep.points[self.number]), None
        code = submitted["code"]
        changes = code_changes(code, code_version(), checksums_file(Path(self.sweep), code))
        warning = changes and f"the code has changed since this was submitted: {changes}"
        return [RunSpec.of(each) for each in submitted["runs"]], warning

    def checkpoint(self) -> Any:
        """The call that submitit starts when the job is requeued: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _record_failure_of_this_job(error: BaseException) -> None:
    from submitit import JobEnvironment

    job = JobEnvironment()
    record_failure(job.paths.folder, error, job.global_rank)


def record_failure(job_folder: Path, error: BaseException, rank: int = 0) -> None:
    """Store the error of the process that failed first; later errors are consequences of it."""
    message = explain(error) or f"{type(error).__name__}: {error}"
    path = failure_file(job_folder, int(this_job().get("restarts", 0)))
    with if_possible():  # the error itself is printed
        with writing(path):
            job_folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, {"error": message, "process": rank, "host": socket.gethostname()})


def _requeue(stop: StopRequest, folder: RunFolder) -> None:
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
            mark_ended(folder, "interrupted", message)
            deliver(folder)
            raise Interrupted(message) from error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM sends it when the job is requeued
    time.sleep(WAIT_FOR_JOB_END_SECONDS)  # a process that exits before the first one has requeued the job kills the job
    sys.exit(EXIT_INTERRUPTED)
