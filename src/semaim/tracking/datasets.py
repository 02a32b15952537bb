"""The images that a run uses, as MLflow's datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from semaim.data.image_sets import ImageSet
from semaim.runs.journal import DataUse
from semaim.tracking.run_names import data_name

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

Context = Literal["training", "evaluation"]
DIGEST_CHARACTERS = 8  # as MLflow's own
CONTEXT_TAG = "mlflow.data.context"


def use(images: ImageSet, classes: int, context: Context, choice: str, config: Mapping[str, Any]) -> DataUse:
    """What the journal says of images.

    Args:
        images: the images.
        classes: number of their classes.
        context: what the run does with them.
        choice: choice of the group `data`.
        config: configuration of the data.
    """
    return {
        "name": data_name(choice, config),
        "digest": images.fingerprint()[:DIGEST_CHARACTERS],
        "source": images.place() or config["source"]["_target_"],
        "folder": bool(images.place()),
        "images": len(images),
        "classes": classes,
        "context": context,
    }


def dataset_input(used: DataUse) -> DatasetInput:
    """The same for MLflow, which stores a dataset of the same name and digest once, and shows this profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = {"uri": used["source"]} if used["folder"] else {"tags": {"mlflow.source.name": used["source"]}}
    dataset = Dataset(
        name=used["name"],
        digest=used["digest"],
        source_type="local" if used["folder"] else "code",
        source=json.dumps(source),
        profile=json.dumps({"num_rows": used["images"], "num_classes": used["classes"]}),
    )
    return DatasetInput(dataset, [InputTag(CONTEXT_TAG, used["context"])])
