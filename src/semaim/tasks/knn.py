"""k-nearest-neighbour accuracy of an encoder: by itself as a task, and during pretraining.

Shapes: M images of the bank, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from semaim.checkpoints.encoder_source import EncoderSource
from semaim.core.distributed import Processes
from semaim.core.seeding import derive_seed
from semaim.data.image_data import ImageData
from semaim.data.sources import ImageSet
from semaim.errors import UserError
from semaim.evaluation.accuracy import Answers
from semaim.evaluation.features import Encode, Features, Pass, extract
from semaim.evaluation.knn import nearest_neighbours
from semaim.runs.context import Run
from semaim.tasks.evaluation import FeatureEvaluation


def check_ks(ks: Sequence[int]) -> list[int]:
    """Numbers of neighbours, if they are such."""
    if not ks or min(ks) < 1:
        raise UserError(f"ks={list(ks)} must be positive numbers of neighbours")
    return list(ks)


def classify(
    bank: Features, queries: Features, ks: Sequence[int], classes: Sequence[str], processes: Processes
) -> dict[str, Answers]:
    """Answers of the nearest neighbours: keys `knn_<k>_<cls or mean>`, for each kind of feature."""
    answers: dict[str, Answers] = {}
    for kind in bank.by_kind:
        found = nearest_neighbours(
            bank.by_kind[kind], bank.labels_M, queries.by_kind[kind], ks, len(classes), processes
        )
        answers |= {f"knn_{k}_{kind}": Answers(found[k], queries.labels_M, classes) for k in ks}
    return answers


class OnlineNeighbours:
    """k-NN accuracy during training, in memory.

    Args:
        ks: numbers of neighbours.
        batch_size: images at a time on each process.
        max_bank: at most so many labelled training images (a random choice, fixed by the seed); null for all.
        max_queries: at most so many held-out images, likewise.
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
        answers = classify(bank, queries, self.ks, data.source.classes, run.processes)
        return {name: answer.accuracy for name, answer in answers.items()}

    def _features(
        self, encode: Encode, data: ImageData, images: ImageSet, limit: int | None, run: Run, title: str
    ) -> Features:
        indices = list(range(len(images)))
        if limit is not None and limit < len(indices):
            generator = torch.Generator().manual_seed(derive_seed(run.seed, "k-NN subset", len(images)))
            indices = sorted(torch.randperm(len(images), generator=generator)[:limit].tolist())
        return extract(Pass(encode, data, images, indices, self.batch_size, title), run)


class KNN(FeatureEvaluation):
    """The task: k-NN accuracy of a checkpoint's encoder.

    Args:
        source: the encoder.
        data: labelled images, some of them held out.
        ks: numbers of neighbours.
        batch_size: images at a time on each process.
        features_dir: where features are kept, so that the next k-NN need not compute them; null to hold them in memory
            and keep nothing.
    """

    def __init__(
        self, source: EncoderSource, data: ImageData, ks: Sequence[int], batch_size: int, features_dir: str | None
    ) -> None:
        super().__init__(source, data, batch_size, features_dir)
        self.ks = check_ks(ks)
        self.metric = f"knn_{self.ks[0]}_mean"
        if max(self.ks) > len(self.labelled):
            raise UserError(f"ks={self.ks}, but there are {len(self.labelled)} labelled training images: lower task.ks")

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError for what cannot work on these processes: nothing here."""

    def run(self, run: Run) -> Mapping[str, float]:
        """Evaluate; the accuracies in percent."""
        origin = self.begin(run)
        bank = self.features(self.labelled, range(len(self.labelled)), run, "k-NN bank")
        queries = self.features(self.held_out, range(len(self.held_out)), run, "k-NN queries")
        answers = classify(bank, queries, self.ks, self.classes, run.processes)
        answers[self.metric].write(run)
        return self.end(run, origin, {name: answer.accuracy for name, answer in answers.items()})
