"""k-nearest-neighbour evaluation of an encoder: by itself as a task, and during pretraining.

Shapes: M images, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from semaim.checkpoint import list_steps
from semaim.data import ImageData
from semaim.data.sources import ImageSet
from semaim.distributed import Processes
from semaim.errors import UserError
from semaim.features import extract, nearest_neighbours
from semaim.interop import load_model
from semaim.models.aim import AIM
from semaim.run_context import Run
from semaim.seeding import derive_seed

log = logging.getLogger(__name__)


class NearestNeighbours:
    """Settings of a k-NN evaluation.

    Args:
        ks: numbers of neighbours.
        batch_size: images at a time on each process.
        max_bank: at most so many labelled training images (a random choice, fixed by the seed); null for all.
        max_queries: at most so many held-out images, likewise.
    """

    def __init__(
        self, ks: Sequence[int], batch_size: int, max_bank: int | None = None, max_queries: int | None = None
    ) -> None:
        if not ks or min(ks) < 1:
            raise UserError(f"ks={list(ks)} must be positive numbers of neighbours")
        self.ks = list(ks)
        self.batch_size = batch_size
        self.max_bank = max_bank
        self.max_queries = max_queries

    def accuracy(self, model: AIM, data: ImageData, run: Run) -> dict[str, float]:
        """Accuracy in percent of held-out images: keys `knn_<k>_<cls or mean>`, for both kinds of features.

        Raises:
            UserError: if the data have no labelled held-out images.
        """
        if data.source.labelled is None or data.source.val is None:
            raise UserError("these data have no labelled training and held-out images, which a k-NN needs")
        bank, bank_labels = self._features(model, data, data.source.labelled, self.max_bank, run, "k-NN bank")
        query, labels = self._features(model, data, data.source.val, self.max_queries, run, "k-NN queries")
        device, classes = run.processes.device, len(data.source.classes)
        result = {}
        for kind in bank:
            predicted = nearest_neighbours(
                bank[kind].to(device), bank_labels.to(device), query[kind].to(device), self.ks, classes
            )
            for k in self.ks:
                result[f"knn_{k}_{kind}"] = 100 * (predicted[k].cpu() == labels).float().mean().item()
        return result

    def _features(
        self, model: AIM, data: ImageData, images: ImageSet, limit: int | None, run: Run, title: str
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        indices = list(range(len(images)))
        if limit is not None and limit < len(indices):
            generator = torch.Generator().manual_seed(derive_seed(run.seed, "k-NN subset", len(images)))
            indices = sorted(torch.randperm(len(images), generator=generator)[:limit].tolist())
        return extract(model, data, images, indices, self.batch_size, run, title)


class KNN:
    """The task: k-NN accuracy of a checkpoint's encoder.

    Args:
        checkpoint: what `load_model` takes.
        data: labelled images.
        neighbours: settings.
    """

    def __init__(self, checkpoint: str | None, data: ImageData, neighbours: NearestNeighbours) -> None:
        if checkpoint is None:
            raise UserError("task=knn evaluates a checkpoint: say which with checkpoint=runs/<name> (or a file)")
        self.checkpoint = Path(checkpoint)
        self.data = data
        self.neighbours = neighbours
        self.metric = f"knn_{neighbours.ks[0]}_mean"
        self.model = load_model(self.checkpoint)
        if self.model.image_size != data.image_size:
            raise UserError(
                f"checkpoint={checkpoint} is of images of {self.model.image_size[0]}x{self.model.image_size[1]}, the "
                f"data are of {data.image_size[0]}x{data.image_size[1]}: choose the data it was made with (data=...)"
            )

    def next_commands(self, folder: Path, overrides: Sequence[str]) -> dict[str, str]:
        """What a person may want to type after this run."""
        return {}

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError for what cannot work on these processes: nothing here."""

    def run(self, run: Run) -> dict[str, float]:
        """Evaluate; the accuracies in percent."""
        result = self.neighbours.accuracy(self.model.to(run.processes.device), self.data, run)
        steps = list_steps(self.checkpoint / "checkpoints")
        run.log(steps[-1][0] if steps else 0, {f"eval/{name}": value for name, value in result.items()})
        for name, value in result.items():
            log.info("%s: %.2f %%", name, value)
        return result
