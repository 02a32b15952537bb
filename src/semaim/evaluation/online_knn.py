"""k-nearest-neighbour accuracy of an encoder during pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from semaim.core.seeding import derive_seed
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.evaluation.features import Encode, Extraction, Features, extract
from semaim.evaluation.knn import check_ks, classify
from semaim.runs.context import Run


class OnlineKNN:
    """k-NN accuracy during training, in memory.

    Args:
        ks: numbers of neighbours.
        batch_size: images per batch on each process.
        max_bank: largest number of labelled training images (a random subset, fixed by the seed); null for all.
        max_queries: largest number of held-out images, likewise.
    """

    def __init__(self, ks: Sequence[int], batch_size: int, max_bank: int | None, max_queries: int | None) -> None:
        self.ks = check_ks(ks)
        self.batch_size = batch_size
        self.max_bank = max_bank
        self.max_queries = max_queries

    def accuracy(self, encode: Encode, data: ImageData, run: Run) -> dict[str, float]:
        """Accuracy in percent of held-out images, by `knn_<k>_<kind>`.

        Raises:
            UserError: if the data have no labelled held-out images.
        """
        labelled, held_out = data.labelled_and_held_out()
        bank = self._features(encode, data, labelled, self.max_bank, run, "k-NN bank")
        queries = self._features(encode, data, held_out, self.max_queries, run, "k-NN queries")
        predictions = classify(bank, queries, self.ks, data.splits.classes, run.processes)
        return {name: prediction.accuracy for name, prediction in predictions.items()}

    def _features(
        self, encode: Encode, data: ImageData, images: ImageSet, limit: int | None, run: Run, title: str
    ) -> Features:
        indices = list(range(len(images)))
        if limit is not None and limit < len(indices):
            generator = torch.Generator().manual_seed(derive_seed(run.seed, "k-NN subset", len(images)))
            indices = sorted(torch.randperm(len(images), generator=generator)[:limit].tolist())
        return extract(Extraction(encode, data, images, indices, self.batch_size, title), run)
