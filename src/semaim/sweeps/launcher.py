"""Launches a sweep for Hydra's launcher: checks it, creates its folder and MLflow run, submits it, waits for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from semaim.config.compose import given_folders
from semaim.config.effects import without_effect
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.config.validate import check_launcher
from semaim.core import terminal
from semaim.core.formatting import plural, printable, program
from semaim.errors import Interrupted, SweepFailed, UserError
from semaim.runs.provenance import code_version, command_line
from semaim.sweeps.commands import cancel
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
        executor: what runs the jobs.
        launcher: the launcher's options.
        config: Hydra's configuration of the sweep.
        job_overrides: the command line of each run.

    Returns:
        for each run the value of its metric, or the exception that explains its absence.

    Raises:
        UserError: for a mistake, before anything is submitted.
        Interrupted: after a signal, if the runs are executed in this process.
    """
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun starts several processes
    terminal.show_logs(is_main)
    check_launcher(launcher)
    folders = given_folders(config.hydra)
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    points = make_points(job_overrides, folders, dependent=executor == "slurm")
    spec = compose_run_spec(points[0].overrides, folders)
    sweep = Sweep(
        path=Path(spec.cfg.runs_dir).absolute() / (spec.cfg.sweep.name or sweep_name(points, overrides)),
        executor=executor,
        launcher=launcher,
        points=points,
        restarts=spec.cfg.sweep.restarts,
        command=command_line(),
        folders=folders,
        code=code_version(),
    )
    if not is_main:
        run_here(sweep, to_submit(sweep, None), is_main)
        return []
    try:
        with sweep.folder.locked():  # only one process at a time launches it
            indices = to_submit(sweep, _previous_states(sweep))
            if spec.cfg.sweep.check:
                _preflight(sweep, indices)
            for message in () if spec.cfg.sweep.check else without_effect(spec.cfg, spec.overrides, is_sweep=True):
                log.warning(message)  # a check says so itself
            _create(sweep, spec)
            _submit_or_run(sweep, indices)
        point_states = wait(sweep) if spec.cfg.sweep.wait and executor != "basic" else states(sweep)
    except KeyboardInterrupt:
        _on_ctrl_c(sweep)
        raise
    log.info("%s\n%s", printable(sweep.command), table(sweep, point_states), extra=terminal.LINES)
    update_parent(sweep, point_states)
    first_points = [
        (point, state) for point, state in zip(sweep.points, point_states, strict=True) if point.after is None
    ]
    return [_job_return(point.overrides, state, sweep) for point, state in first_points]


def _on_ctrl_c(sweep: Sweep) -> None:
    """Say that SLURM's jobs continue; let local ones save, then raise Interrupted."""
    if sweep.executor == "slurm" and any(point.job for point in sweep.points):
        log.info("no longer waiting; the jobs continue:\n%s", next_commands(sweep), extra=terminal.LINES)
    if sweep.executor == "local" and any(point.job for point in sweep.points):
        log.info("every run finishes its step and saves; press Ctrl-C again to quit now")
        log.info("%s", cancel(sweep.path))
        raise Interrupted("stopped by SIGINT") from None


def _previous_states(sweep: Sweep) -> list[PointState] | None:
    """The states of the jobs of an earlier launch, which this launch continues; None if there are none."""
    if not (sweep.path / FILE).is_file():
        return None
    previous = Sweep.load(sweep.path)
    if previous.executor == "basic":
        return None
    jobs = {point.run_dir: point.job for point in previous.points}
    if previous.executor != sweep.executor:
        if alive := [
            point.job for point, state in zip(previous.points, states(previous), strict=True) if not state.over
        ]:
            raise UserError(
                f"{sweep.path} has jobs that are not over ({', '.join(map(str, alive))}): wait for them, or "
                f"{program('cancel', sweep.path)}"
            )
        return None
    for point in sweep.points:
        point.job = jobs.get(point.run_dir)
    return states(sweep)


def _preflight(sweep: Sweep, indices: Sequence[int]) -> None:
    """Check all runs before any starts; raises UserError with a line for each problem."""
    from semaim.preflight.check import check_sweep

    command_lines = [sweep.points[index].overrides for index in indices if sweep.points[index].after is None]
    if not command_lines:
        return
    options = sweep.launcher if sweep.executor == "slurm" else {}
    if sweep.executor == "local":  # without SLURM's options, which a site configuration may set
        options = {key: value for key, value in sweep.launcher.items() if key in ("tasks_per_node", "gpus_per_node")}
    checked = check_sweep(command_lines, sweep.folders, options, fetch=True)
    if checked.problems:
        raise UserError("\n  ".join(["nothing was started, because of these problems (sweep.check=false starts it "
                                     "anyway):", *checked.problems]))  # fmt: skip
    log.info("checked:\n%s", checked, extra=terminal.LINES)


def _create(sweep: Sweep, spec: RunSpec) -> None:
    """Create the folder of the sweep and, if it has several points, their MLflow parent run."""
    if len(sweep.points) > 1:
        for point in sweep.points:
            point.parent = point.parent or str(sweep.path)
        open_parent(sweep, instantiate(spec.cfg.tracking, _convert_="all"))
    sweep.save()


def _submit_or_run(sweep: Sweep, indices: Sequence[int]) -> None:
    """Run or submit points."""
    if skipped := len(sweep.points) - len(indices):
        log.info("%d of %d runs are finished or under way already", skipped, len(sweep.points))
    if sweep.executor == "basic":
        run_here(sweep, indices, is_main=True)
    elif indices:
        submit(sweep, indices)
        ids = ", ".join(dict.fromkeys(str(sweep.points[index].job).split("_")[0] for index in indices))
        log.info(
            "submitted %s (%s %s); the sweep is in %s", plural(len(indices), "job"), sweep.executor, ids, sweep.path
        )
        log.info("next commands:\n%s", next_commands(sweep), extra=terminal.LINES)


def _job_return(overrides: list[str], state: PointState, sweep: Sweep) -> JobReturn:
    """The result of a run for Hydra's sweeper."""
    result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    result.return_value = state.value
    if state.unsuccessful:
        unsuccessful = sum(point.unsuccessful for point in states(sweep))
        result.status = JobStatus.FAILED
        result.return_value = SweepFailed(
            f"{unsuccessful} of {len(sweep.points)} runs did not finish; the table above says why. Results: "
            f"{sweep.path / 'results.csv'}. Try them again with: {program('retry', '--failed', sweep.path)}"
        )
    return result
