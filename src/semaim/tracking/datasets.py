"""The images that a run uses, as MLflow's datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from semaim.config.run_spec import RunSpec
from semaim.runs.journal import DataUse, Journal
from semaim.tracking.run_names import data_name

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from semaim.data.image_sets import ImageSet  # which imports torch; a job must listen to signals before that

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


def record_datasets(journal: Journal, spec: RunSpec, image_sets: Mapping[Context, tuple[ImageSet, int]]) -> None:
    """Write the images that a run uses to its journal; `image_sets`: see `Task.image_sets`."""
    for context, (images, classes) in image_sets.items():
        journal.dataset(use(images, classes, context, spec.choices["data"], spec.config["data"]))


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
