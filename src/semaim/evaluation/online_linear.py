"""A linear classifier trained along with pretraining, on detached features.

Shapes: K = 2 kinds of features (cls, mean), B images, N tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.core.seeding import derive_seed, seeded
from semaim.data.image_data import ImageData
from semaim.data.image_sets import UNLABELLED
from semaim.evaluation.accuracy import named, predict_classes
from semaim.evaluation.evaluator import Evaluator, Learner, evaluation_is_due
from semaim.evaluation.features import Extraction, extract
from semaim.models.heads import LinearHeads
from semaim.models.predictor import Predictor
from semaim.runs.context import Run
from semaim.training.ddp import wrap
from semaim.training.optimizers import scaled_lr, set_lr

log = logging.getLogger(__name__)
KINDS = ("cls", "mean")
NORMALISATION_IMAGES = 1024  # training images that feature statistics are computed on


class OnlineLinear(Evaluator):
    """Accuracy in percent of linear heads on the class token and on the mean patch token, as online/linear_<kind>.

    SGD trains them at a constant learning rate, one step per micro-batch of labelled images.

    Args:
        every_epochs: see `Evaluator`; the untrained heads are not evaluated.
        base_lr: learning rate for 256 images.
        batch_size: images per batch on each process when accuracy is measured.
    """

    highlights: ClassVar[dict[str, str]] = {
        "online/linear_...": "accuracy in percent of a linear classifier that is trained along with the model; "
        "`_top5` is its top-5 accuracy, `_loss` its cross-entropy"
    }
    learns = True

    def __init__(self, every_epochs: int | None, base_lr: float, batch_size: int) -> None:
        super().__init__(every_epochs)
        self.base_lr = base_lr
        self.batch_size = batch_size

    def is_due(self, epoch: int, last: bool) -> bool:
        """As of `Evaluator`, but not before training."""
        return evaluation_is_due(self.every_epochs, epoch, last)

    def check(self, data: ImageData) -> None:
        """Raise UserError without labelled training and held-out images."""
        data.labelled_and_held_out()

    def begin(self, model: Predictor, data: ImageData, run: Run) -> None:
        """Make the heads on the device of training; their gradients are averaged over processes."""
        with seeded(derive_seed(run.seed, "online linear")):  # pretraining is the same with and without them
            self.heads = LinearHeads(model.embed_dim, len(data.splits.classes), len(KINDS), [1.0])
        self.heads.to(run.processes.device)
        self.optimizer = torch.optim.SGD(self.heads.parameters(), lr=self.base_lr, momentum=0.9)
        self.forward: Callable[..., Tensor] = wrap(self.heads, run.processes)
        self.world_size = run.processes.world_size

    def learn(self, features: Mapping[str, Tensor], labels_B: Tensor) -> None:
        """Make one step on the labelled images."""
        set_lr(self.optimizer, scaled_lr(self.base_lr, len(labels_B) * self.world_size))
        logits_KBC = self.forward(_stack(features))
        labelled = (labels_B != UNLABELLED).sum().clamp(min=1)
        losses = [F.cross_entropy(x, labels_B, ignore_index=UNLABELLED, reduction="sum") for x in logits_KBC]
        self.optimizer.zero_grad(set_to_none=True)
        (torch.stack(losses).sum() / labelled).backward()
        self.optimizer.step()

    def evaluate(self, learner: Learner, run: Run) -> dict[str, float]:
        """Accuracy and top-5 accuracy in percent and loss for each kind of features."""
        self._normalise(learner, run)
        self.heads.eval()
        _, held_out = learner.data.labelled_and_held_out()
        predictions = predict_classes(
            KINDS, lambda x: self.heads(_stack(learner.features(x))), learner.data, held_out, self.batch_size, run
        )
        self.heads.train()
        shown = ", ".join(f"{each.accuracy:.1f} % ({kind})" for kind, each in predictions.items())
        log.info("online linear classifier after step %d: %s", learner.step, shown)
        return named({f"online/linear_{kind}": each for kind, each in predictions.items()})

    def _normalise(self, learner: Learner, run: Run) -> None:
        """Set the norms' statistics to those of the current features.

        During pretraining the mean of the features changes by more than their spread within a few steps, so running
        averages are useless.
        """
        labelled, _ = learner.data.labelled_and_held_out()
        indices = range(0, len(labelled), -(-len(labelled) // NORMALISATION_IMAGES))
        request = Extraction(learner.features, learner.data, labelled, indices, self.batch_size, "linear head")
        current = extract(request, run)
        for norm, kind in zip(self.heads.norms, KINDS, strict=True):
            var_D, mean_D = torch.var_mean(current.tensor(kind).to(run.processes.device), dim=0)
            norm.load_state_dict(norm.state_dict() | {"running_mean": mean_D, "running_var": var_D})

    def state_dict(self) -> dict[str, Any]:
        """State of heads and optimizer, in plain types."""
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def _stack(features: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([features[kind] for kind in KINDS])
