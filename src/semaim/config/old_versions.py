"""Stored configurations of older versions, in the form of this version.

Runs and checkpoints store their configuration. `upgraded` converts it on reading, so that runs of an older version can
be continued and evaluated.
"""

from __future__ import annotations

from typing import Any

NEW_NAMES = {
    # 0.1.0 -> 0.2.0
    "semaim.data.ImageData": "semaim.data.image_data.ImageData",
    "semaim.encoders.EncoderSource": "semaim.checkpoints.encoder_source.EncoderSource",
    "semaim.optimizers.Optimization": "semaim.training.optimizers.Optimization",
    "semaim.optimizers.layer_decay_groups": "semaim.training.optimizers.layer_decay_groups",
    "semaim.optimizers.parameter_groups": "semaim.training.optimizers.parameter_groups",
    "semaim.tasks.export_features.ExportFeatures": "semaim.tasks.features.ExportFeatures",
    "semaim.tasks.knn.OnlineNeighbours": "semaim.evaluation.online_knn.OnlineKNN",
    "semaim.tasks.online_pictures.OnlinePictures": "semaim.visualization.online_pictures.OnlinePictures",
    "semaim.tracking.MLflow": "semaim.tracking.mlflow.MLflow",
    "semaim.tracking.NoTracking": "semaim.tracking.mlflow.NoTracking",
    "semaim.trainer.Trainer": "semaim.training.settings.TrainerSettings",
}

FORMER_OPTIONS = {
    "model.activation_checkpointing": "trainer.activation_checkpointing",
    "task.online_knn": "task.evaluators.knn",
    "task.pictures": "task.evaluators.pictures",
    "task.knn_every_epochs": "task.evaluators.knn.every_epochs",
    "task.online_linear_lr": "evaluators=[knn,linear] and task.evaluators.linear.base_lr",
}


def upgraded(config: Any) -> dict[str, Any]:
    """A stored configuration, in plain types, as this version would store it."""
    config = _with_current_names(config)
    task = config.get("task", {})
    task.pop("permutations", None)  # of visualize in 0.1.0: the orders that could be drawn
    if "online_knn" in task:  # 0.1.0: evaluators were options of the task
        every, lr = task.pop("knn_every_epochs"), task.pop("online_linear_lr")
        linear = {"_target_": "semaim.evaluation.online_linear.OnlineLinear", "base_lr": lr, "batch_size": 64}
        found = {"knn": task.pop("online_knn"), "linear": lr and linear, "pictures": task.pop("pictures")}
        task["evaluators"] = {name: {"every_epochs": every} | each for name, each in found.items() if each is not None}
    source = (config.get("data") or {}).get("source") or {}
    if source.get("_target_") == "semaim.data.sources.image_folders":
        source.setdefault("exif", False)  # 0.1.0 read images as stored
    if task.get("_target_") == "semaim.tasks.knn.KNN":
        task.setdefault("mean_before_norm", False)
    config.setdefault("extend", None)
    checkpointing = _with_current_models(config)
    if config.get("trainer"):
        since = {"strategy": "ddp", "activation_checkpointing": checkpointing, "flops": None}
        config["trainer"] = since | config["trainer"]
    if config.get("optimizer"):
        config["optimizer"].setdefault("schedule", {"_target_": "semaim.training.schedules.Cosine"})
    if "recipe" not in config:  # 0.1.0: data=digits and data=shapes alone had a short one
        embedded = source.get("_target_") in ("semaim.data.sources.digits", "semaim.data.shapes.shapes")
        config["recipe"] = "short" if embedded else "published"
        if config.get("target", {}).get("source") == "ema":  # which then set trainer.ema
            config["trainer"]["ema"] = False
    return config


def upgraded_state(task_state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint stores of its task, as this version would store it."""
    if "evaluators" in task_state or "origin" in task_state:  # of this version, or of an evaluation
        return task_state
    linear = task_state.pop("online_linear", None)  # 0.1.0
    return {"evaluators": {} if linear is None else {"linear": linear}} | task_state


def _with_current_models(config: Any) -> bool:
    """Give the models of a configuration the options that 0.1.0 lacked; whether they had activation checkpointing."""
    if not isinstance(config, dict):
        return False
    own = False
    if config.get("_target_") == "semaim.models.aim.AIM":
        own = config.pop("activation_checkpointing", False)
        for option, value in {"segments": None, "skip_connections": False}.items():
            config.setdefault(option, value)
    return any([own, *map(_with_current_models, config.values())])


def _with_current_names(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: NEW_NAMES.get(value, value) if key == "_target_" else _with_current_names(value)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_with_current_names(value) for value in config]
    return config
