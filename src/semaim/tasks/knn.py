"""k-nearest-neighbour accuracy of an encoder: by itself as a task, and during pretraining.

Shapes: M images of the bank, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semaim.checkpoints.encoder_source import EncoderSource
from semaim.core.distributed import Processes
from semaim.data.image_data import ImageData
from semaim.errors import UserError
from semaim.evaluation.knn import check_ks, classify
from semaim.runs.context import Run
from semaim.tasks.evaluation import FeatureEvaluation


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
