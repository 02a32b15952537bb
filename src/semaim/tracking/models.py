"""The models that pretrainings make, as MLflow's logged models: sizes, choices and accuracies; the weights stay in the
run folder."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semaim.errors import DamagedFile
from semaim.runs.folder import RunFolder, Tracked
from semaim.runs.journal import read
from semaim.tracking.run_names import encodable, stored_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

log = logging.getLogger(__name__)
UID = "semaim.uid"  # the tag of the run, and of its model
NOT_IN_A_NAME = re.compile(r"[/:.%\"']")  # in MLflow's names of models
OWN_METRICS = ("train/loss", "online/")  # of the pretraining, on the page of its model


def log_model(
    client: MlflowClient, folder: RunFolder, state: dict[str, Any], params: dict[str, str], step: int
) -> None:
    """Log the model of a finished pretraining, or what is new of it; this can be repeated.

    Args:
        client: of the store.
        folder: the run folder.
        state: content of its mlflow.json.
        params: sizes and choices of the model.
        step: of training.
    """
    from mlflow.entities import LoggedModelOutput

    run_id, experiment_id = state["run_id"], state["experiment_id"]
    if (model := find_model(client, experiment_id, state["uid"])) is None:
        name = NOT_IN_A_NAME.sub("-", encodable(stored_name(folder)))
        tags = {UID: state["uid"], "run_folder": str(folder.path), "mlflow.note.content": _note(folder)}
        tags = {key: encodable(value) for key, value in tags.items()}
        tags |= {"mlflow.user": user} if (user := folder.last_start().get("user")) else {}
        model = client.create_logged_model(experiment_id, name, run_id, tags, params)
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if model.model_id not in [each.model_id for each in (outputs.model_outputs if outputs else ())]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    client.log_batch(run_id, metrics=_last_points(folder, model.model_id, run_id))


def find_model(client: MlflowClient, experiment_id: str, uid: str) -> LoggedModel | None:
    """The model of a run, by the run's own identifier."""
    found = client.search_logged_models([experiment_id], f"tags.`{UID}` = '{uid}'", max_results=1)
    return next(iter(found), None)


def remove_model(client: MlflowClient, tracked: Tracked) -> None:
    """Delete the model of a run, if there is one."""
    if (model := find_model(client, tracked.get("experiment_id", ""), tracked["uid"])) is not None:
        client.delete_logged_model(model.model_id)


def model_of(client: MlflowClient, run_folder: str, uri: str) -> str | None:
    """Id of the model of a pretraining; None if this store does not have it.

    Args:
        client: of the store.
        run_folder: of the pretraining.
        uri: address of the store.
    """
    from semaim.tracking.delivery import Delivery

    folder = RunFolder(Path(run_folder))
    with suppress(DamagedFile):
        for attempt in range(2):
            tracked = folder.tracked()
            if tracked is None or tracked.get("uri") != uri:
                return None
            experiment_id = tracked.get("experiment_id") if tracked["run_id"] else None
            if experiment_id and (model := find_model(client, experiment_id, tracked["uid"])) is not None:
                return str(model.model_id)
            if attempt or folder.is_locked():
                return None
            with suppress(Exception):  # it may be of another user
                Delivery(folder).deliver()  # it could not send all of it
    return None


def _last_points(folder: RunFolder, model_id: str, run_id: str) -> list[Metric]:
    """The last value of each metric to show for the model; the run has these points already, and keeps one of each."""
    from mlflow.entities import Metric

    last = {
        key: Metric(key, float(value), line["time"], line["step"], model_id=model_id, run_id=run_id)
        for _, line in read(folder.journal, 0)
        for key, value in line.get("metrics", {}).items()
        if key.startswith(OWN_METRICS)
    }
    return list(last.values())


def _note(folder: RunFolder) -> str:
    """Description of a model in Markdown."""
    return (
        f"The weights are in the run folder, not in this store:\n\n"
        f"```python\nmodel = semaim.load_model({str(folder.path)!r})\n```\n\n"
        f"`semaim export --mlflow` of this folder adds a model with weights, which MLflow itself can load."
    )
