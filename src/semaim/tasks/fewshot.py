"""Few-shot accuracy: k-NN and a linear classifier on n labelled images per class, for several random choices of them.

Features are computed once, without augmentation. The shared training loop trains the linear classifier on them.

Shapes: K kinds of features, M images, B of a batch, D width.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semaim.checkpoints.encoder_source import EncoderSource
from semaim.core.distributed import Processes
from semaim.core.seeding import derive_seed, seeded
from semaim.data.image_data import ImageData
from semaim.data.loading import TrainingData
from semaim.data.subsets import few_shot_indices
from semaim.errors import Interrupted, UserError
from semaim.evaluation.accuracy import Predictions
from semaim.evaluation.features import Features
from semaim.evaluation.knn import check_ks, classify
from semaim.models.heads import LinearHeads
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.tasks.evaluation import FeatureEvaluation
from semaim.tasks.linprobe import HeadTraining, check_trainer
from semaim.training import loop
from semaim.training.optimizers import Optimization
from semaim.training.settings import TrainerSettings

log = logging.getLogger(__name__)


class FeatureRows:
    """Features in place of images, for the training loop's loader.

    Args:
        features_MKD: of all images.
        labels_M: their classes.
    """

    def __init__(self, features_MKD: Tensor, labels_M: Tensor) -> None:
        self.features_MKD = features_MKD
        self.labels_M = labels_M

    def __len__(self) -> int:
        return len(self.labels_M)

    def read(self, index: int) -> Tensor:
        return self.features_MKD[index]

    def label(self, index: int) -> int:
        return int(self.labels_M[index])

    def name(self, index: int) -> str:
        return f"few-shot image {index}"


class FewShot(FeatureEvaluation):
    """The task.

    Args:
        source: the encoder.
        data: labelled images, some of them held out.
        optimizer: of the linear classifier.
        trainer: settings of the loop; its batch_size is at most the number of images.
        shots: numbers of labelled images per class.
        repeats: random choices of these images for each number; results are mean and standard deviation over them.
        ks: numbers of neighbours; a k above the number of images per class is skipped.
        batch_size: images per batch on each process.
        features_dir: folder of the feature cache; null to keep features in memory only.
    """

    def __init__(
        self,
        source: EncoderSource,
        data: ImageData,
        optimizer: Optimization,
        trainer: TrainerSettings,
        shots: Sequence[int],
        repeats: int,
        ks: Sequence[int],
        batch_size: int,
        features_dir: str | None,
    ) -> None:
        super().__init__(source, data, batch_size, features_dir)
        if not shots or min(shots) < 1 or repeats < 1:
            raise UserError(f"task.shots={list(shots)} and task.repeats={repeats} must be positive")
        self.trainer = trainer
        self.shots = list(shots)
        self.repeats = repeats
        self.ks = check_ks(ks)
        self.metric = f"linprobe_mean_{self.shots[-1]}shot"
        check_trainer(trainer, heads=2 if self.vit.cls_token is not None else 1)
        self.optimizer = optimizer

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
        by_name: dict[str, list[float]] = {}
        for (shots, repeat), indices in chosen.items():
            few = rows_of(bank, indices)
            ks = [k for k in self.ks if k <= shots]
            predictions = classify(few, queries, ks, self.classes, run.processes) if ks else {}
            accuracies = {name: each.accuracy for name, each in predictions.items()}
            path = Path("linear") / self.weights[:16] / f"{shots}shot_{repeat}"
            accuracies |= self._linear(few, queries, derive_seed(run.seed, "heads", shots, repeat), path, run)
            for name, value in accuracies.items():
                by_name.setdefault(f"{name}_{shots}shot", []).append(value)
            if repeat == self.repeats - 1:
                values = by_name[f"linprobe_mean_{shots}shot"]
                log.info(
                    "%d images per class: linear %.2f %% (%d choices)", shots, statistics.mean(values), len(values)
                )
        result = {}
        for name, values in by_name.items():
            result[name] = statistics.mean(values)
            if len(values) > 1:
                result[f"{name}_std"] = statistics.stdev(values)
        return self.end(run, origin, result)

    def _linear(self, few: Features, queries: Features, seed: int, path: Path, run: Run) -> dict[str, float]:
        """Accuracy of a linear classifier trained on few images, computed by the first process for all."""
        outcome: dict[str, float] | Interrupted = {}
        if run.processes.is_main:
            try:
                outcome = self._linear_alone(few, queries, seed, path, run)
            except Interrupted as error:  # the others wait for the broadcast
                outcome = error
        outcome = run.processes.broadcast(outcome)
        if isinstance(outcome, Interrupted):
            raise outcome
        return outcome

    def _linear_alone(self, few: Features, queries: Features, seed: int, path: Path, run: Run) -> dict[str, float]:
        """The same, in a single process.

        Checkpoints are stored under `path` in the run folder, which names the encoder: another encoder does not
        continue from them.
        """
        folder = RunFolder(run.folder.path / path)
        folder.path.mkdir(parents=True, exist_ok=True)
        single = Processes(0, 1, run.processes.device)
        inner = dataclasses.replace(run, folder=folder, processes=single, seed=seed, journal=None, quiet=True)
        trainer = dataclasses.replace(self.trainer, batch_size=min(self.trainer.batch_size, len(few.labels_M)))
        kinds = list(few.by_kind)
        with seeded(seed):
            heads = LinearHeads(self.vit.embed_dim, len(self.classes), len(kinds), [1.0])
        images: Any = FeatureRows(stacked(few).transpose(0, 1).contiguous(), few.labels_M)
        training = TrainingData(images, identity, num_workers=0, max_unreadable=0)
        loop.fit(HeadTraining(heads, training, lambda rows: rows.transpose(0, 1), self.optimizer), trainer, inner)
        heads.eval()
        with torch.no_grad():
            predicted_SM = heads(stacked(queries).to(single.device)).argmax(-1).cpu()
        return {
            f"linprobe_{kind}": Predictions(predicted_M, queries.labels_M, self.classes).accuracy
            for kind, predicted_M in zip(kinds, predicted_SM, strict=True)
        }


def identity(features_KD: Any) -> Tensor:
    """The transform of features: none."""
    return features_KD


def rows_of(features: Features, indices: Sequence[int]) -> Features:
    """The features of some images of a set, without unreadable images."""
    rows = np.flatnonzero(np.isin(features.index_M.numpy(), indices))
    return Features(
        {kind: np.array(values[rows]) for kind, values in features.by_kind.items()},
        features.labels_M[rows],
        features.index_M[rows],
    )


def stacked(features: Features) -> Tensor:
    """All kinds stacked: (K, M, D)."""
    return torch.stack([features.tensor(kind) for kind in features.by_kind])
