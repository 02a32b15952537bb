"""Deleting runs and sweeps, as `semaim rm` does: the folder with its checkpoints, and the MLflow run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semaim.core.files import read_json
from semaim.core.formatting import plural, program, relative_to_cwd, size
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.sweeps.commands import find
from semaim.sweeps.listing import rows
from semaim.sweeps.states import states
from semaim.sweeps.sweep import FILE, Sweep
from semaim.tracking.store import refusal


@dataclass(frozen=True)
class Removal:
    """A folder to be deleted.

    Attributes:
        path: of a run or a sweep.
        bytes: its size.
        tracked: what mlflow.json says; None for a run that MLflow does not know.
    """

    path: Path
    bytes: int
    tracked: dict[str, Any] | None


def planned(paths: Sequence[Path]) -> list[Removal]:
    """What is deleted with some folders: the runs, and of a sweep all its runs and itself.

    Raises:
        UserError: for a folder that is neither, and for runs that are running or waiting in a queue.
    """
    found: dict[Path, None] = {}
    for path in paths:
        _refuse_live(path)
        if (path / FILE).is_file():
            points = Sweep.load(path).points
            places = [Path(place) for point in points for place in (point.run_dir, *point.then)]
            found |= dict.fromkeys(place for place in places if (place / "config.yaml").is_file())
        found[path.absolute()] = None
    sizes = {each.path.absolute(): each.bytes for parent in {place.parent for place in found} for each in rows(parent)}
    return [Removal(relative_to_cwd(place), sizes.get(place, 0), _tracked(place)) for place in found]


def _refuse_live(path: Path) -> None:
    sweep, numbers = find(path)
    now = states(sweep)
    live = [sweep.points[number].name for number in numbers if not now[number].over]
    held = [point.name for point in (sweep.points[number] for number in numbers) if point.folder.is_locked()]
    if names := list(dict.fromkeys([*live, *held])):
        raise UserError(
            f"{path} is not over ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): wait for it, or stop it "
            f"with {program('cancel', path)}"
        )


def _tracked(path: Path) -> dict[str, Any] | None:
    stored: dict[str, Any] | None = read_json(path / "mlflow.json")
    return stored if stored and stored.get("run_id") else None


def description(removals: Sequence[Removal], keep_mlflow: bool) -> str:
    """What would be deleted, for the person who is asked."""
    lines = [
        f"  {each.path}  ({size(each.bytes)})"
        + (
            f", MLflow run {each.tracked['run_id']} at {each.tracked['uri']}"
            if each.tracked and not keep_mlflow
            else ""
        )
        for each in removals
    ]
    total = size(sum(each.bytes for each in removals))
    return "\n".join([f"to be deleted, {plural(len(removals), 'folder')}, {total}:", *lines])


def confirmed() -> bool:
    """Ask on the terminal.

    Raises:
        UserError: if there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UserError("nothing was deleted, since nobody can be asked here: give --yes to delete without asking")
    return input("delete for good? [y/N] ").strip().lower() in ("y", "yes")


def remove(removal: Removal, keep_mlflow: bool) -> None:
    """Delete the MLflow run, then the folder. Afterwards both are gone, or an error says what is left.

    Raises:
        UserError: if a process has started the run meanwhile, or if the MLflow run or the folder cannot be deleted.
    """
    folder = RunFolder(removal.path)
    folder.lock()
    try:
        if removal.tracked is not None and not keep_mlflow:
            _delete_tracked(removal)
        shutil.rmtree(folder.path)
    except OSError as error:
        raise UserError(f"{removal.path} cannot be deleted completely: {error}") from error
    finally:
        folder.unlock()


def _delete_tracked(removal: Removal) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    assert removal.tracked is not None
    uri, run_id = removal.tracked["uri"], removal.tracked["run_id"]
    try:
        MlflowClient(uri).delete_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # deleted in MLflow already
            return
        raise _not_deleted(removal, refusal(uri, error)) from error
    except Exception as error:  # MLflow and the libraries below it raise many kinds
        raise _not_deleted(removal, refusal(uri, error)) from error


def _not_deleted(removal: Removal, reason: str) -> UserError:
    assert removal.tracked is not None
    return UserError(
        f"{removal.path} was not deleted, since its MLflow run cannot be deleted ({removal.tracked['uri']}: {reason}). "
        f"To delete the folder alone: {program('rm', '--keep-mlflow', removal.path)}"
    )
