"""Predictions of a classifier: accuracy in all and per class, top-5 accuracy, loss, and the confusion matrix.

Shapes: S classifiers, B images of a batch, M images in all, C classes, R = min(5, C) classes, the likeliest first.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.core.files import write_text
from semaim.data.batches import Batch
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.errors import NonFiniteError
from semaim.evaluation.features import Extraction, extract, network_of
from semaim.runs.context import Run

log = logging.getLogger(__name__)
TOP = 5
DIVERGED = -1  # predicted class of an image for which a classifier computes a value that is not finite


def predict_classes(
    names: Sequence[str],
    logits: Callable[[Tensor], Tensor],
    data: ImageData,
    images: ImageSet,
    batch_size: int,
    run: Run,
) -> dict[str, Predictions]:
    """Classify all images of a labelled set, by the name of the classifier; processes share the work.

    Classifiers that have diverged, so that their outputs are not finite, are logged and left out.

    Args:
        names: of the classifiers.
        logits: their outputs (S, B, C) on a batch of normalised images.
        data, images, batch_size, run: as for `semaim.evaluation.features.extract`.

    Raises:
        NonFiniteError: if all of them have diverged.
    """

    def classify(images_BCHW: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, logits(images_BCHW), strict=True))

    outputs = extract(_Classification(classify, data, images, range(len(images)), batch_size, "accuracy"), run)
    diverged = [name for name in names if (outputs.by_kind[f"{name}/ranked"] == DIVERGED).any()]
    if len(diverged) == len(names):
        raise NonFiniteError(f"no accuracy: {network_of(run)} and its classifier compute values that are not finite")
    if diverged:
        log.warning("left out, since they have diverged (values that are not finite): %s", ", ".join(diverged))
    labels_M, classes = outputs.labels_M, data.splits.classes
    return {
        name: Predictions.ranked(outputs.tensor(f"{name}/ranked"), labels_M, classes, outputs.tensor(f"{name}/loss"))
        for name in names
        if name not in diverged
    }


class _Classification(Extraction):
    """A pass of classifiers: of the logits (B, C) only the likeliest classes and the cross-entropy are kept."""

    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        kept = {}
        for name, logits_BC in self.encode(batch.images_BCHW).items():
            loss_B = F.cross_entropy(logits_BC.float(), batch.labels_B, reduction="none")
            finite_B = logits_BC.isfinite().all(-1) & loss_B.isfinite()
            kept[f"{name}/ranked"] = likeliest(logits_BC).masked_fill(~finite_B[:, None], DIVERGED)
            kept[f"{name}/loss"] = loss_B.where(finite_B, 0.0)
        return kept


def likeliest(scores_BC: Tensor) -> Tensor:
    """Classes (B, R) with the highest scores, highest first; of equal scores the first class wins, as in argmax."""
    return scores_BC.argsort(dim=-1, descending=True, stable=True)[..., :TOP]


def named(predictions: Mapping[str, Predictions]) -> dict[str, float]:
    """Metrics of several classifiers: the accuracy by the classifier's name, `<name>_top5` and `<name>_loss`."""
    return {
        name if metric == "accuracy" else f"{name}_{metric}": value
        for name, each in predictions.items()
        for metric, value in each.metrics().items()
    }


@dataclass(frozen=True)
class Predictions:
    """Predicted and true classes, one entry per image.

    Attributes:
        predicted_M, labels_M: long.
        classes: names.
        in_top5_M: whether the true class is among the five likeliest, bool; None if not known.
        loss_M: cross-entropy, without label smoothing; None if there are no probabilities.
    """

    predicted_M: Tensor
    labels_M: Tensor
    classes: Sequence[str]
    in_top5_M: Tensor | None = None
    loss_M: Tensor | None = None

    @classmethod
    def ranked(
        cls, ranked_MR: Tensor, labels_M: Tensor, classes: Sequence[str], loss_M: Tensor | None = None
    ) -> Predictions:
        """Predictions from the classes of `likeliest`."""
        return cls(ranked_MR[:, 0], labels_M, classes, (ranked_MR == labels_M[:, None]).any(1), loss_M)

    @property
    def accuracy(self) -> float:
        """Percent of the images that are classified correctly."""
        return 100 * (self.predicted_M == self.labels_M).double().mean().item()

    def metrics(self) -> dict[str, float]:
        """`accuracy` and `top5` in percent, `loss` in nats, as far as known; of five classes or fewer no `top5`."""
        found = {"accuracy": self.accuracy}
        if self.in_top5_M is not None and len(self.classes) > TOP:
            found["top5"] = 100 * self.in_top5_M.double().mean().item()
        if self.loss_M is not None:
            found["loss"] = self.loss_M.double().mean().item()
        return found

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
