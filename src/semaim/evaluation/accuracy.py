"""Predictions of a classifier: accuracy, in all and per class, and the confusion matrix.

Shapes: S classifiers, B images of a batch, M images in all, C classes.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semaim.core.files import write_text
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.errors import NonFiniteError
from semaim.evaluation.features import Extraction, extract, network_of
from semaim.runs.context import Run

log = logging.getLogger(__name__)
DIVERGED = -1  # predicted class of an image for which a classifier computes a value that is not finite


def predict_classes(
    names: Sequence[str],
    logits: Callable[[Tensor], Tensor],
    data: ImageData,
    images: ImageSet,
    batch_size: int,
    run: Run,
) -> dict[str, Predictions]:
    """Predict the classes of all images of a set, by the name of the classifier; processes share the work.

    Classifiers that have diverged, so that their outputs are not finite, are logged and left out.

    Args:
        names: of the classifiers.
        logits: their outputs (S, B, C) on a batch of normalised images.
        data, images, batch_size, run: as for `semaim.evaluation.features.extract`.

    Raises:
        NonFiniteError: if all of them have diverged.
    """

    def predict(images_BCHW: Tensor) -> dict[str, Tensor]:
        logits_SBC = logits(images_BCHW)
        classes_SB = logits_SBC.argmax(-1).masked_fill(~logits_SBC.isfinite().all(-1), DIVERGED)
        return dict(zip(names, classes_SB, strict=True))

    outputs = extract(Extraction(predict, data, images, range(len(images)), batch_size, "accuracy"), run)
    diverged = [name for name in names if (outputs.by_kind[name] == DIVERGED).any()]
    if len(diverged) == len(names):
        raise NonFiniteError(f"no accuracy: {network_of(run)} and its classifier compute values that are not finite")
    if diverged:
        log.warning("left out, since they have diverged (values that are not finite): %s", ", ".join(diverged))
    measured = [name for name in names if name not in diverged]
    return {name: Predictions(outputs.tensor(name), outputs.labels_M, data.splits.classes) for name in measured}


@dataclass(frozen=True)
class Predictions:
    """Predicted and true classes, one entry per image.

    Attributes:
        predicted_M, labels_M: long.
        classes: names.
    """

    predicted_M: Tensor
    labels_M: Tensor
    classes: Sequence[str]

    @property
    def accuracy(self) -> float:
        """Percent of the images that are classified correctly."""
        return 100 * (self.predicted_M == self.labels_M).double().mean().item()

    def confusion(self) -> Tensor:
        """Number of images (C, C) by true (row) and predicted (column) class."""
        pairs = self.labels_M * len(self.classes) + self.predicted_M
        return torch.bincount(pairs, minlength=len(self.classes) ** 2).view(len(self.classes), -1)

    def write(self, run: Run) -> None:
        """Write `confusion.csv` and `per_class.csv` to the run folder, as artifacts for MLflow (first process only)."""
        confusion_CC = self.confusion()
        images_C, right_C = confusion_CC.sum(1).tolist(), confusion_CC.diagonal().tolist()
        per_class = [
            [name, images, f"{100 * right / images:.4f}" if images else ""]
            for name, images, right in zip(self.classes, images_C, right_C, strict=True)
        ]
        rows = [[name, *row] for name, row in zip(self.classes, confusion_CC.tolist(), strict=True)]
        tables = {
            "per_class.csv": [["class", "images", "accuracy"], *per_class],
            "confusion.csv": [["true \\ predicted", *self.classes], *rows],
        }
        for name, table in tables.items():
            if run.processes.is_main:
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(table)
                write_text(run.folder.path / name, text.getvalue())
            run.artifact(name)
