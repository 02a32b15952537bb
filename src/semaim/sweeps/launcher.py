"""From Hydra's launcher to a sweep: looks it over, opens its folder and MLflow run, submits it, and waits for it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from semaim.config.messages import EXIT_INTERRUPTED_AT_ONCE, print_error
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.core import terminal
from semaim.core.formatting import plural, program
from semaim.errors import Interrupted, SweepFailed, UserError
from semaim.runs.provenance import code_version, command_line
from semaim.sweeps.mlflow_parent import open_parent, update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.submit import run_here, submit, to_submit, wait
from semaim.sweeps.sweep import FILE, Executor, Sweep, make_points, sweep_name
from semaim.sweeps.table import next_commands, table

log = logging.getLogger(__name__)


def launch(
    executor: Executor, launcher: dict[str, Any], config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> list[JobReturn]:
    """Launch a sweep.

    Args:
        executor: who runs the jobs.
        launcher: the launcher's options.
        config: Hydra's configuration of the sweep.
        job_overrides: the command line of each run.

    Returns:
        for each run the value of its metric, or the exception that tells why there is none.

    Raises:
        UserError: for a mistake, before anything is submitted.
    """
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun starts several processes
    terminal.show_logs(is_main)
    sources = config.hydra.runtime.config_sources
    folders = [f"file://{source.path}" for source in sources if source.provider == "command-line"]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    points = make_points(job_overrides, folders, dependent=executor == "slurm")
    settings = compose_run_spec(points[0].overrides, folders)
    sweep = Sweep(
        path=Path(settings.cfg.runs_dir).absolute() / (settings.cfg.sweep.name or sweep_name(points, typed)),
        executor=executor,
        launcher=launcher,
        points=points,
        restarts=settings.cfg.sweep.restarts,
        command=command_line(),
        folders=folders,
        code=code_version(),
    )
    if not is_main:
        run_here(sweep, to_submit(sweep, None), is_main)
        return []
    try:
        with _in_hand(sweep):
            numbers = to_submit(sweep, _former_states(sweep))
            if settings.cfg.sweep.check:
                _look_over(sweep, numbers)
            _open(sweep, settings)
            _start(sweep, numbers)
        now = wait(sweep) if settings.cfg.sweep.wait and executor != "basic" else states(sweep)
    except Interrupted as error:
        sys.exit(print_error(error))
    except KeyboardInterrupt:
        if executor == "slurm":
            log.info("no longer waiting; the jobs go on:\n%s", next_commands(sweep))
        sys.exit(EXIT_INTERRUPTED_AT_ONCE)
    log.info("%s\n%s", sweep.command, table(sweep, now))
    update_parent(sweep, now)
    firsts = [(point, state) for point, state in zip(sweep.points, now, strict=True) if point.after is None]
    return [_job_return(point.overrides, state, sweep) for point, state in firsts]


@contextmanager
def _in_hand(sweep: Sweep) -> Iterator[None]:
    """One process at a time launches a sweep."""
    sweep.folder.lock()
    try:
        yield
    finally:
        sweep.folder.unlock()


def _former_states(sweep: Sweep) -> list[PointState] | None:
    """The states of the points by jobs of an earlier launch, which this one takes over; None if there are none."""
    if not (sweep.path / FILE).is_file():
        return None
    former = Sweep.load(sweep.path)
    if former.executor == "basic":
        return None
    jobs = {point.run_dir: point.job for point in former.points}
    if former.executor != sweep.executor:
        if alive := [point.job for point, state in zip(former.points, states(former), strict=True) if not state.over]:
            raise UserError(
                f"{sweep.path} has jobs that are not over ({', '.join(map(str, alive))}): wait for them, or "
                f"{program('cancel', sweep.path)}"
            )
        return None
    for point in sweep.points:
        point.job = jobs.get(point.run_dir)
    return states(sweep)


def _look_over(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Find what would make runs fail before any starts; raises UserError with a line for each problem."""
    from semaim.preflight.check import check_sweep

    firsts = [sweep.points[number].overrides for number in numbers if sweep.points[number].after is None]
    if not firsts:
        return
    options = sweep.launcher if sweep.executor == "slurm" else {}
    if sweep.executor == "local":  # not partition and the like, which a site may have set
        options = {key: value for key, value in sweep.launcher.items() if key in ("tasks_per_node", "gpus_per_node")}
    checked = check_sweep(firsts, sweep.folders, options)
    if checked.problems:
        raise UserError("\n  ".join(["nothing was started, since this would go wrong (sweep.check=false starts it "
                                     "all the same):", *checked.problems]))  # fmt: skip
    log.info("looked over:\n%s", checked)


def _open(sweep: Sweep, settings: RunSpec) -> None:
    """Make the folder of the sweep, and the MLflow run that its runs are shown under if there are several."""
    if len(sweep.points) > 1:
        for point in sweep.points:
            point.parent = point.parent or str(sweep.path)
        open_parent(sweep, instantiate(settings.cfg.tracking, _convert_="all"))
    sweep.save()


def _start(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Run or submit what must be."""
    if left := len(sweep.points) - len(numbers):
        log.info("%d of %d runs are finished or under way already", left, len(sweep.points))
    if sweep.executor == "basic":
        run_here(sweep, numbers, is_main=True)
    elif numbers:
        submit(sweep, numbers)
        ids = ", ".join(dict.fromkeys(str(sweep.points[number].job).split("_")[0] for number in numbers))
        log.info(
            "submitted %s (%s %s); the sweep is in %s", plural(len(numbers), "job"), sweep.executor, ids, sweep.path
        )
        log.info("what to type next:\n%s", next_commands(sweep))


def _job_return(overrides: list[str], state: PointState, sweep: Sweep) -> JobReturn:
    """What Hydra's sweeper is told of a run."""
    told = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    told.return_value = state.value
    if state.over and state.word != "finished":
        bad = sum(1 for point in states(sweep) if point.over and point.word != "finished")
        told.status = JobStatus.FAILED
        told.return_value = SweepFailed(
            f"{bad} of {len(sweep.points)} runs did not finish; the table above says why. Results: "
            f"{sweep.path / 'results.csv'}. Try them again with: {program('retry', '--failed', sweep.path)}"
        )
    return told
