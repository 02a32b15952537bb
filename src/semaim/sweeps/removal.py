"""Deletion of runs and sweeps, for `semaim rm`: the folder with its checkpoints, and the MLflow run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semaim.core.formatting import count, plural, printable, program, relative_to_cwd
from semaim.errors import DamagedFile, UserError
from semaim.runs.folder import RunFolder, Tracked
from semaim.sweeps.commands import find
from semaim.sweeps.listing import folder_bytes
from semaim.sweeps.states import states
from semaim.sweeps.submit import adopt
from semaim.sweeps.sweep import FILE, Point, Sweep
from semaim.tracking.delivery import unknown_request_skipped
from semaim.tracking.models import remove_model
from semaim.tracking.store import client_uri, mlflow_errors, store_of_folder
from semaim.tracking.views import remove_view


@dataclass(frozen=True)
class Removal:
    """A folder to be deleted.

    Attributes:
        path: of a run or a sweep.
        bytes: its size.
        tracked: content of mlflow.json; None for a run without an MLflow run, or to keep it.
    """

    path: Path
    bytes: int
    tracked: Tracked | None


def plan_removals(paths: Sequence[Path], keep_mlflow: bool) -> list[Removal]:
    """The folders to delete: runs, and sweeps with all their runs.

    Raises:
        UserError: for a folder that is neither, for runs that are running or waiting in a queue, and for runs whose
            MLflow run is not known, or in a store that the user does not name (unless `keep_mlflow`).
    """
    run_dirs: dict[Path, None] = {}
    for path in paths:
        try:
            sweep, indices = find(path)
        except DamagedFile:  # the lock tells whether it is running
            sweep, indices = Sweep("basic", {}, [Point([], str(path.absolute()))], restarts=0, command=""), [0]
        _refuse_live(path, sweep, indices)
        if (path / FILE).is_file():
            beside = path.resolve().parent  # of a copied folder, the runs are elsewhere: they stay
            run_dirs |= dict.fromkeys(
                run_dir
                for run_dir in sweep.run_dirs
                if (run_dir / "config.yaml").is_file() and run_dir.resolve().is_relative_to(beside)
            )
        run_dirs[path.absolute()] = None
    return [
        Removal(relative_to_cwd(run_dir), folder_bytes(run_dir), None if keep_mlflow else _tracked(run_dir))
        for run_dir in run_dirs
    ]


def _refuse_live(path: Path, sweep: Sweep, indices: Sequence[int]) -> None:
    if sweep.executor != "basic":
        adopt(sweep, indices)  # only here: jobs of other sweeps for these runs, which it logs
    point_states = states(sweep)
    unfinished = [sweep.points[index].name for index in indices if not point_states[index].over]
    locked = [sweep.points[index].name for index in indices if sweep.points[index].folder.is_locked()]
    if names := list(dict.fromkeys([*unfinished, *locked])):
        raise UserError(
            f"{path} is not over ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): wait for it, or stop it "
            f"with {program('cancel', path)}"
        )


def _tracked(path: Path) -> Tracked | None:
    try:
        stored = RunFolder(path).tracked()
    except DamagedFile as error:
        raise UserError(f"{error}; or delete the folder alone: {program('rm', '--keep-mlflow', path)}") from error
    if stored is None or not stored["run_id"]:
        return None
    stored["uri"] = store_of_folder(path, stored["uri"])
    return stored


def description(removals: Sequence[Removal]) -> str:
    """The folders to be deleted, as text for the confirmation."""
    lines = []
    for each in removals:
        mlflow_run = f", MLflow run {each.tracked['run_id']} at {each.tracked['uri']}" if each.tracked else ""
        lines.append(f"  {printable(str(each.path))}  ({count(each.bytes, 'B')}){mlflow_run}")
    total = count(sum(removal.bytes for removal in removals), "B")
    return "\n".join([f"to be deleted, {plural(len(removals), 'folder')}, {total}:", *lines])


def confirm() -> bool:
    """Ask for confirmation on the terminal.

    Raises:
        UserError: if there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UserError(
            "nothing was deleted, since there is no terminal to ask on: give --yes to delete without asking"
        )
    return input("delete for good? [y/N] ").strip().lower() in ("y", "yes")


def remove(removal: Removal) -> None:
    """Delete the MLflow run, then the folder; an error says which of them remains.

    Raises:
        UserError: if a process has started the run meanwhile, or if the MLflow run or the folder cannot be deleted.
    """
    folder = RunFolder(removal.path)
    with folder.locked():
        if removal.tracked:
            _delete_tracked(removal.path, removal.tracked)
        try:
            shutil.rmtree(folder.path)
        except OSError as error:
            raise UserError(f"{removal.path} cannot be deleted completely: {error}") from error


def _delete_tracked(path: Path, tracked: Tracked) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, run_id = tracked["uri"], tracked["run_id"]
    problem = (
        f"{path} was not deleted, since its MLflow run cannot be deleted ({uri}: {{reason}}). To delete the "
        f"folder alone: {program('rm', '--keep-mlflow', path)}"
    )
    with mlflow_errors(uri, problem):
        try:
            client = MlflowClient(client_uri(uri))
            client.delete_run(run_id)
            with unknown_request_skipped():
                remove_model(client, tracked)
                remove_view(client, tracked)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # already deleted
                raise
