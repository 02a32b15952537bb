"""k-nearest-neighbour accuracy of an encoder during pretraining."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import torch

from semaim.core.formatting import plural
from semaim.core.headline import headlines
from semaim.core.seeding import derive_seed
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.evaluation.evaluator import Evaluator, Learner
from semaim.evaluation.features import Extraction, Features, extract
from semaim.evaluation.knn import check_ks, classify
from semaim.models.predictor import Predictor
from semaim.runs.context import Run

log = logging.getLogger(__name__)
FEATURE = {"cls": "class token", "mean": "mean of the patch tokens"}


class OnlineKNN(Evaluator):
    """k-NN accuracy in percent of held-out images, as online/knn_<k>_<kind>; none if there are no labelled ones.

    Args:
        every_epochs: see `Evaluator`.
        ks: numbers of neighbours.
        batch_size: images per batch on each process.
        max_bank: largest number of labelled training images (a random subset, fixed by the seed); null for all.
        max_queries: largest number of held-out images, likewise.
    """

    highlights: ClassVar[dict[str, str]] = {
        "online/knn_...": "accuracy in percent of nearest neighbours on held-out images, before, during (with "
        "`task.evaluators.knn.every_epochs`) and after training. `online/knn_10_mean` compares orders; the loss does "
        "not, since orders differ in how hard they are to predict"
    }

    def __init__(
        self,
        every_epochs: int | None,
        ks: Sequence[int],
        batch_size: int,
        max_bank: int | None,
        max_queries: int | None,
    ) -> None:
        super().__init__(every_epochs)
        self.ks = check_ks(ks)
        self.batch_size = batch_size
        self.max_bank = max_bank
        self.max_queries = max_queries

    def begin(self, model: Predictor, data: ImageData, run: Run) -> None:
        """Say so if there is nothing to measure on."""
        if data.splits.labelled is None:
            log.info("no k-NN accuracy: these data have no labels")

    def evaluate(self, learner: Learner, run: Run) -> dict[str, float]:
        """Accuracy in percent for each k and kind of features."""
        if learner.data.splits.val is None:
            return {}
        labelled, held_out = learner.data.labelled_and_held_out()
        bank = self._features(learner, labelled, self.max_bank, run, "k-NN, training images")
        queries = self._features(learner, held_out, self.max_queries, run, "k-NN, held-out images")
        predictions = classify(bank, queries, self.ks, learner.data.splits.classes, run.processes)
        accuracies = {name: prediction.accuracy for name, prediction in predictions.items()}
        name = headlines(f"online/{name}" for name in accuracies)[0].removeprefix("online/")
        _, k, kind = name.split("_", 2)
        log.info("after step %d: %.1f %% of %s classified by k-NN (k=%s, %s)", learner.step, accuracies[name],
                 plural(len(queries.labels_M), "held-out image"), k, FEATURE[kind])  # fmt: skip
        return {f"online/{name}": value for name, value in accuracies.items()}

    def _features(self, learner: Learner, images: ImageSet, limit: int | None, run: Run, title: str) -> Features:
        indices = list(range(len(images)))
        if limit is not None and limit < len(indices):
            generator = torch.Generator().manual_seed(derive_seed(run.seed, "k-NN subset", len(images)))
            indices = sorted(torch.randperm(len(images), generator=generator)[:limit].tolist())
        return extract(Extraction(learner.features, learner.data, images, indices, self.batch_size, title), run)
