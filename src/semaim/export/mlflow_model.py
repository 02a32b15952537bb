"""Logs an encoder to its MLflow run, as a plain timm model that loads without semaim."""

from __future__ import annotations

import inspect
import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.tracking.delivery import Delivery
from semaim.tracking.store import client_uri, mlflow_errors


def tracked_run(run: Path | None, checkpoint: Path) -> Delivery:
    """The MLflow run of a run folder; delivers the folder first.

    Raises:
        UserError: if the checkpoint is not in a run folder, its run was not tracked, or its store is unreachable or not
            one that the user names.
    """
    if run is None or not (run / "mlflow.json").is_file():
        raise UserError(f"--mlflow: checkpoint={checkpoint} is not of a run that MLflow tracked")
    delivery = Delivery(RunFolder(run))
    store = delivery.state["uri"]
    with mlflow_errors(store, f"--mlflow: MLflow at {store} does not answer ({{reason}})"):
        delivery.deliver()
    return delivery


def log_model(vit: VisionTransformer, name: str, delivery: Delivery) -> tuple[str, str]:
    """Log a model with its signature and an input example.

    The run keeps its status and its times. The model maps normalised images (B, 3, H, W) to logits (B, classes), or
    without a head to features (B, D).

    Returns:
        address of the store as MLflow reads it, and of the model in it.

    Raises:
        UserError: if the store does not accept it.
    """
    import mlflow
    import mlflow.pytorch
    from mlflow.models import Model

    uri, run_id = delivery.state["uri"], delivery.state["run_id"]
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of pickles, the format of modules
    example_BCHW = np.zeros((1, 3, *pair(vit.patch_embed.img_size)), np.float32)
    module_format = {"serialization_format": "pickle"}  # a traced graph has no token outputs and cannot be trained
    parameters = inspect.signature(mlflow.pytorch.save_model).parameters
    with mlflow_errors(uri, f"--mlflow: MLflow at {uri} does not accept the model ({{reason}})"):
        mlflow.set_tracking_uri(client_uri(uri))
        mlflow.set_experiment(experiment_id=mlflow.get_run(run_id).info.experiment_id)
        logged = Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.pytorch,
            run_id=run_id,
            pytorch_model=vit,
            input_example=example_BCHW,
            pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "timm", "numpy")],
            **{key: value for key, value in module_format.items() if key in parameters},
        )
    return client_uri(uri), logged.model_uri
