"""Few-shot accuracy: k-NN and logistic regression on n labelled images per class, for several random choices of them.

Features are computed once, without augmentation.

Shapes: M images, D width.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.core.seeding import derive_seed
from semaim.data.subsets import few_shot_indices
from semaim.errors import Interrupted, UserError
from semaim.evaluation.accuracy import Predictions
from semaim.evaluation.features import Features
from semaim.evaluation.knn import check_ks, classify
from semaim.runs.context import Run
from semaim.tasks.evaluation import FeatureEvaluation

log = logging.getLogger(__name__)
# Of the solver. At scikit-learn's default tolerance (1e-4), one prediction of a thousand is not that of the optimum.
TOLERANCE, MAX_ITERATIONS = 1e-6, 1000


@dataclass(eq=False)
class FewShot(FeatureEvaluation):
    """The task.

    Args:
        source, data, batch_size, features_dir: see `FeatureEvaluation`.
        shots: numbers of labelled images per class.
        repeats: random choices of these images for each number; results are mean and standard deviation over them.
        ks: numbers of neighbours; a k above the number of images per class is skipped.
        C: of the logistic regression, see `logistic_regression`.
    """

    shots: Sequence[int]
    repeats: int
    ks: Sequence[int]
    C: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) < 2:
            raise UserError("task=fewshot needs data of two classes or more, these have one: choose other data")
        check_ks(self.ks)
        self.metric = f"linprobe_mean_{self.shots[-1]}shot"

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError if a class has too few images, before anything is written."""
        for shots in self.shots:
            few_shot_indices(self.labelled, shots, seed)

    def run(self, run: Run) -> dict[str, float]:
        """Evaluate; returns mean and deviation of the accuracies in percent."""
        origin = self.begin(run)
        chosen = {
            (shots, repeat): few_shot_indices(self.labelled, shots, derive_seed(run.seed, "few-shot", repeat))
            for shots in self.shots
            for repeat in range(self.repeats)
        }
        needed = sorted({index for indices in chosen.values() for index in indices})
        bank = self.features(self.labelled, needed, run, "few-shot images")
        queries = self.features(self.held_out, range(len(self.held_out)), run, "held-out images")
        by_name: defaultdict[str, list[float]] = defaultdict(list)
        for (shots, repeat), indices in chosen.items():
            if (signal := run.stop.agree(run.processes)) is not None:
                raise Interrupted(f"stopped by {signal} during an evaluation, of which only features are kept")
            for name, value in self._accuracies(rows_of(bank, indices), queries, shots, run.processes).items():
                by_name[f"{name}_{shots}shot"].append(value)
            if repeat == self.repeats - 1:
                values = by_name[f"linprobe_mean_{shots}shot"]
                log.info(
                    "%s per class: linear classifier on the mean of the patch tokens %.2f %% (%s of images)",
                    plural(shots, "image"),
                    statistics.mean(values),
                    plural(len(values), "choice"),
                )
        result = {}
        for name, values in by_name.items():
            result[name] = statistics.mean(values)
            if len(values) > 1:
                result[f"{name}_std"] = statistics.stdev(values)
        return self.end(run, origin, result)

    def _accuracies(self, few: Features, queries: Features, shots: int, processes: Processes) -> dict[str, float]:
        """Accuracies in percent of all classifiers on one choice of images; the first process fits the linear ones."""
        ks = [k for k in self.ks if k <= shots]
        predictions = classify(few, queries, ks, self.classes, processes) if ks else {}
        if processes.is_main:
            predictions |= logistic_regression(few, queries, self.C, self.classes)
        accuracies: dict[str, float] = processes.broadcast({name: each.accuracy for name, each in predictions.items()})
        return accuracies


def logistic_regression(few: Features, queries: Features, C: float, classes: Sequence[str]) -> dict[str, Predictions]:
    """Predictions of a logistic regression for each kind of feature: keys `linprobe_<cls or mean>`.

    Features are standardised with the mean and standard deviation of each dimension over the few images. With W the
    weights, the fit minimises

        |W|^2 / 2 + C * (sum over the few images of the cross-entropy).

    The problem is convex and is solved in float64, so nothing is random.

    Args:
        few: labelled features, of two classes or more.
        queries: features to classify.
        C: weight of the data against the L2 penalty.
        classes: their names.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predictions = {}
    for kind in few.by_kind:
        regression = LogisticRegression(C=C, solver="lbfgs", tol=TOLERANCE, max_iter=MAX_ITERATIONS)
        classifier = make_pipeline(StandardScaler(), regression)
        classifier.fit(few.by_kind[kind].astype(np.float64), few.labels_M.numpy())
        predicted_M = torch.from_numpy(classifier.predict(queries.by_kind[kind].astype(np.float64)))
        predictions[f"linprobe_{kind}"] = Predictions(predicted_M, queries.labels_M, classes)
    return predictions


def rows_of(features: Features, indices: Sequence[int]) -> Features:
    """The features of some images of a set, without unreadable images."""
    rows = np.flatnonzero(np.isin(features.index_M.numpy(), indices))
    return Features(
        {kind: np.array(values[rows]) for kind, values in features.by_kind.items()},
        features.labels_M[rows],
        features.index_M[rows],
    )
