"""An encoder logged to the MLflow run that it is from, as a plain model of timm's, which loads without semaim."""

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
from semaim.tracking.store import refusal


def tracked_run(run: Path | None, checkpoint: Path) -> Delivery:
    """The MLflow run of a run folder, made and brought up to date if need be.

    Raises:
        UserError: if the checkpoint lies in no run folder, its run was not tracked, or the store is out of reach.
    """
    if run is None or not (run / "mlflow.json").is_file():
        raise UserError(f"mlflow=true: checkpoint={checkpoint} is not of a run that MLflow tracked")
    delivery = Delivery(RunFolder(run))
    try:
        delivery.deliver()
    except UserError:
        raise
    except Exception as error:  # MLflow and what lies below it raise many kinds
        store = delivery.state["uri"]
        raise UserError(f"mlflow=true: MLflow at {store} does not answer ({refusal(store, error)})") from error
    return delivery


def log_model(vit: VisionTransformer, name: str, delivery: Delivery) -> tuple[str, str]:
    """Log a model with its signature and an example of its input.

    The run keeps its status and its time. The model maps normalised images (B, 3, H, W) to logits (B, classes), or
    without a head to features (B, D).

    Returns:
        address of the store, and of the model in it.

    Raises:
        UserError: if the store does not take it.
    """
    import mlflow
    import mlflow.pytorch
    from mlflow.models import Model

    uri, run_id = delivery.state["uri"], delivery.state["run_id"]
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of pickles, which is how modules are kept
    example_BCHW = np.zeros((1, 3, *pair(vit.patch_embed.img_size)), np.float32)
    as_module = {"serialization_format": "pickle"}  # a graph alone would have no tokens and could not learn
    known = inspect.signature(mlflow.pytorch.save_model).parameters
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment_id=mlflow.get_run(run_id).info.experiment_id)
        logged = Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.pytorch,
            run_id=run_id,
            pytorch_model=vit,
            input_example=example_BCHW,
            pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "timm", "numpy")],
            **{key: value for key, value in as_module.items() if key in known},
        )
    except Exception as error:  # MLflow and what lies below it raise many kinds
        raise UserError(f"mlflow=true: MLflow at {uri} does not take the model ({error})") from error
    return uri, logged.model_uri
