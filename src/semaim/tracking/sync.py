"""Send to MLflow what a run could not send.

This can be repeated, and done while the run is running: each point is stored once.
"""

from __future__ import annotations

from pathlib import Path

from semaim.core.files import write_json
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.runs.status import MLFLOW_STATUS, StoredState
from semaim.tracking.delivery import Delivery
from semaim.tracking.store import mlflow_errors


def mark_ended(folder: RunFolder, state: StoredState, error: str) -> None:
    """Write the end of a run to its folder, in place of its process, which is gone."""
    journal = Journal(folder.journal)
    journal.status(MLFLOW_STATUS[state])
    journal.close()
    write_json(folder.path / "status.json", folder.status() | {"state": state, "error": error})


def sync(path: Path, uri: str | None, experiment: str | None = None) -> int:
    """Deliver one run folder; a run whose process is gone is marked as vanished first.

    Args:
        path: the run folder.
        uri: the store; None for that of the run, if it is the configured one.
        experiment: experiment of a run that was started without tracking.

    Returns:
        number of metric points sent.

    Raises:
        UserError: if it is no run folder, names a store that the user does not, or the store is unreachable.
    """
    if not (path / "config.yaml").exists():
        raise UserError(f"{path} is not a run folder: it has no config.yaml")
    folder = RunFolder(path)
    if folder.process_is_gone():
        mark_ended(folder, "vanished", "the process was killed")
    delivery = Delivery(folder, uri, experiment, option="--uri")
    store = delivery.state["uri"]
    with mlflow_errors(store, f"MLflow at {store} does not accept the metrics of {path}: {{reason}}"):
        return delivery.deliver()
