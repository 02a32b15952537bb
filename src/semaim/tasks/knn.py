"""k-nearest-neighbour accuracy of an encoder, as a task.

Shapes: M images of the bank, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

from semaim.checkpoints.encoder_source import EncoderSource
from semaim.core.headline import preferred_k
from semaim.data.image_data import ImageData
from semaim.errors import UserError
from semaim.evaluation.accuracy import named
from semaim.evaluation.knn import check_ks, classify
from semaim.runs.context import Run
from semaim.tasks.evaluation import FeatureEvaluation


class KNN(FeatureEvaluation):
    """The task: k-NN accuracy of a checkpoint's encoder.

    Args:
        source, data, batch_size, features_dir: see `FeatureEvaluation`.
        ks: numbers of neighbours.
        mean_before_norm: also evaluate this feature of `semaim.models.vit.encode`.
    """

    def __init__(
        self,
        source: EncoderSource,
        data: ImageData,
        ks: Sequence[int],
        batch_size: int,
        features_dir: str | None,
        mean_before_norm: bool,
    ) -> None:
        super().__init__(source, data, batch_size, features_dir)
        self.mean_before_norm = mean_before_norm
        self.ks = check_ks(ks)
        self.metric = f"knn_{preferred_k(self.ks)}_mean"
        if max(self.ks) > len(self.labelled):
            raise UserError(f"ks={self.ks}, but there are {len(self.labelled)} labelled training images: lower task.ks")

    def run(self, run: Run) -> dict[str, float]:
        """Evaluate; returns the accuracies and top-5 accuracies in percent."""
        origin = self.begin(run)
        bank = self.features(self.labelled, range(len(self.labelled)), run, "k-NN, training images")
        queries = self.features(self.held_out, range(len(self.held_out)), run, "k-NN, held-out images")
        predictions = classify(bank, queries, self.ks, self.classes, run.processes)
        predictions[self.metric].write(run)
        return self.end(run, origin, named(predictions))
