"""Launches a sweep for Hydra's launcher: checks it, creates its folder and MLflow run, submits it, waits for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from semaim.config.compose import given_folders, unchanged_files
from semaim.config.effects import without_effect
from semaim.config.run_spec import RunSpec
from semaim.config.validate import check_launcher
from semaim.core import terminal
from semaim.core.formatting import plural, printable, program
from semaim.core.ranks import ranks
from semaim.errors import Interrupted, SweepFailed, UserError
from semaim.runs.folder import as_begun
from semaim.runs.provenance import command_line
from semaim.sweeps.commands import cancel
from semaim.sweeps.comparison import comparison_text
from semaim.sweeps.mlflow_parent import open_parent, update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.submit import adopt, only_writer, run_here, submit, to_submit
from semaim.sweeps.sweep import FILE, Executor, Point, Sweep, make_points, sweep_name
from semaim.sweeps.table import next_commands, table
from semaim.sweeps.waiting import wait

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
    place = ranks()
    is_main = place.rank == 0
    terminal.show_logs(is_main)
    if executor != "basic" and place.world_size > 1:
        raise UserError(
            f"hydra/launcher={executor} starts processes of its own: type it once, without {place.launcher}"
        )
    check_launcher(launcher)
    folders = given_folders(config.hydra)
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    with unchanged_files():
        points, runs = make_points(job_overrides, folders, dependent=executor == "slurm")
        if executor == "basic":
            runs = [[as_begun(spec) for spec in specs] for specs in runs]
        return _launch(_sweep_of(executor, launcher, points, runs[0][0], overrides), runs, is_main)


def _sweep_of(
    executor: Executor, launcher: dict[str, Any], points: list[Point], spec: RunSpec, overrides: Sequence[str]
) -> Sweep:
    return Sweep(
        path=Path(spec.cfg.runs_dir).absolute() / (spec.cfg.sweep.name or sweep_name(points, overrides)),
        executor=executor,
        launcher=launcher,
        points=points,
        restarts=spec.cfg.sweep.restarts,
        command=command_line(),
        folders=list(spec.folders),
        snapshot=spec.cfg.sweep.snapshot,
    )


def _launch(sweep: Sweep, runs: Sequence[Sequence[RunSpec]], is_main: bool) -> list[JobReturn]:
    """Launch a sweep of these runs."""
    if not is_main:
        run_here(sweep, to_submit(sweep, runs, None), runs, is_main)
        return []
    spec, here = runs[0][0], sweep.executor == "basic"
    try:
        # `semaim retry` takes the first lock, too; the second one is held as long as this process runs the sweep
        with nullcontext() if here else only_writer(sweep.path), sweep.folder.locked():
            indices = to_submit(sweep, runs, _states_of_jobs(sweep))
            if spec.cfg.sweep.check:
                _preflight(sweep, indices)
            for message in () if spec.cfg.sweep.check else without_effect(spec.cfg, spec.overrides, is_sweep=True):
                log.warning(message)  # a check says so itself
            _create(sweep, spec)
            _submit_or_run(sweep, indices, runs)
        sweep, point_states = wait(sweep) if spec.cfg.sweep.wait and not here else (sweep, states(sweep))
    except KeyboardInterrupt:
        _on_ctrl_c(sweep)
        raise
    log.info("%s\n%s", printable(sweep.command), table(sweep, point_states), extra=terminal.LINES)
    update_parent(sweep, point_states)
    pages = instantiate(spec.cfg.tracking, _convert_="all").view_commands(sweep.folder, compare=True)
    if compared := comparison_text(sweep, point_states, pages=pages):
        log.info("%s", compared, extra=terminal.LINES)
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


def _states_of_jobs(sweep: Sweep) -> list[PointState] | None:
    """Take over the jobs of an earlier launch, and live ones of other sweeps; the states, or None without any job."""
    if (sweep.path / FILE).is_file() and (previous := Sweep.load(sweep.path)).executor != "basic":
        others = {point.place: point for point in previous.points}
        for point in sweep.points if previous.executor == sweep.executor else ():
            if (known := others.pop(point.place, None)) is not None:
                point.take_over(known, known.sweep)
        if others and (
            alive := [
                point.job
                for point, state in zip(previous.points, states(previous), strict=True)
                if point in others.values() and not state.over
            ]
        ):  # nobody would know of them
            raise UserError(
                f"{sweep.path} has jobs that are not over, nor of this command ({', '.join(map(str, alive))}): wait "
                f"for them, or {program('cancel', sweep.path)}, or choose another sweep.name"
            )
    if sweep.executor == "basic":
        return None
    before = states(sweep)
    adopt(sweep, [index for index, point in enumerate(sweep.points) if point.job is None or before[index].over])
    return states(sweep) if any(point.job for point in sweep.points) else None


def _preflight(sweep: Sweep, indices: Sequence[int]) -> None:
    """Check all runs before any starts; raises UserError with a line for each problem."""
    from semaim.preflight.check import check_sweep
    from semaim.sweeps.trial import sbatch_answer

    command_lines = [sweep.points[index].overrides for index in indices if sweep.points[index].after is None]
    if not command_lines:
        return
    options = sweep.launcher if sweep.executor == "slurm" else {"tasks_per_node": ranks().world_size}
    if sweep.executor == "local":  # without SLURM's options, which a site configuration may set
        options = {key: value for key, value in sweep.launcher.items() if key in ("tasks_per_node", "gpus_per_node")}
    checked = check_sweep(command_lines, sweep.folders, options, fetch=True, ask_slurm=sbatch_answer)
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


def _submit_or_run(sweep: Sweep, indices: Sequence[int], runs: Sequence[Sequence[RunSpec]]) -> None:
    """Run or submit points."""
    if skipped := len(sweep.points) - len(indices):
        log.info("already finished or under way: %d of %s", skipped, plural(len(sweep.points), "run"))
    if sweep.executor == "basic":
        run_here(sweep, indices, runs, is_main=True)
    elif indices:
        submit(sweep, indices, runs)
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
            f"{unsuccessful} of {plural(len(sweep.points), 'run')} did not finish; the table above says why. Results: "
            f"{sweep.path / 'results.csv'}. Try them again with: {program('retry', '--failed', sweep.path)}"
        )
    return result
