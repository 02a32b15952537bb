"""Old `_target_` names in stored configurations, and their current names.

Runs and checkpoints store their configuration. `with_current_names` updates it on reading, so that runs of an older
version can be continued and evaluated.
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


def with_current_names(config: Any) -> Any:
    """A stored configuration, in plain types, with the current name of every `_target_`."""
    if isinstance(config, dict):
        return {
            key: NEW_NAMES.get(value, value) if key == "_target_" else with_current_names(value)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [with_current_names(value) for value in config]
    return config
