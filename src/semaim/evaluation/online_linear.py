"""A linear classifier trained along with pretraining, on detached features.

Shapes: K = 2 kinds of features (cls, mean), B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.core.distributed import Processes
from semaim.data.image_data import ImageData
from semaim.data.image_sets import UNLABELLED
from semaim.evaluation.accuracy import predict_classes
from semaim.evaluation.features import Extraction, extract
from semaim.models.heads import LinearHeads
from semaim.models.vit import pooled
from semaim.runs.context import Run
from semaim.training.ddp import wrap

KINDS = ("cls", "mean")
NORMALISATION_IMAGES = 1024  # training images that feature statistics are computed on


class OnlineLinear:
    """Linear heads on the class token and on the mean patch token, trained by SGD at a constant learning rate.

    Args:
        width: D.
        data: labelled images, some of them held out.
        lr: learning rate.
        batch_size: images per batch on each process when accuracy is measured.
    """

    def __init__(self, width: int, data: ImageData, lr: float, batch_size: int) -> None:
        self.labelled, self.held_out = data.labelled_and_held_out()
        self.data = data
        self.batch_size = batch_size
        with torch.random.fork_rng(devices=[]):  # pretraining is the same with and without this classifier
            self.heads = LinearHeads(width, len(data.splits.classes), len(KINDS), [1.0])
        self.optimizer = torch.optim.SGD(self.heads.parameters(), lr=lr, momentum=0.9)
        self.forward: Callable[..., Tensor] = self.heads

    def begin(self, processes: Processes) -> None:
        """Move the heads to the device of training; average gradients over processes."""
        self.heads.to(processes.device)
        self.forward = wrap(self.heads, processes)

    def learn(self, tokens_BND: Tensor, labels_B: Tensor) -> None:
        """Make one step on the labelled images of a batch; unlabelled images have label -1."""
        with torch.autocast(tokens_BND.device.type, enabled=False):
            logits_KBC = self.forward(_stack(tokens_BND.detach()))
            labelled = (labels_B != UNLABELLED).sum().clamp(min=1)
            losses = [F.cross_entropy(x, labels_B, ignore_index=UNLABELLED, reduction="sum") for x in logits_KBC]
            self.optimizer.zero_grad(set_to_none=True)
            (torch.stack(losses).sum() / labelled).backward()
        self.optimizer.step()

    def accuracy(self, encode: Callable[[Tensor], Tensor], run: Run) -> dict[str, float]:
        """Accuracy in percent of the held-out images, by `linear_<kind>`."""
        self._normalise(encode, run)
        self.heads.eval()

        def predict(images_BCHW: Tensor) -> dict[str, Tensor]:
            return dict(zip(KINDS, self.heads(_stack(encode(images_BCHW))).argmax(-1), strict=True))

        predictions = predict_classes(predict, self.data, self.held_out, self.batch_size, run)
        self.heads.train()
        return {f"linear_{kind}": each.accuracy for kind, each in predictions.items()}

    def _normalise(self, encode: Callable[[Tensor], Tensor], run: Run) -> None:
        """Set the norms' statistics to those of the current features.

        During pretraining the mean of the features changes by more than their spread within a few steps, so running
        averages are useless.
        """
        indices = range(0, len(self.labelled), -(-len(self.labelled) // NORMALISATION_IMAGES))

        def features(images_BCHW: Tensor) -> dict[str, Tensor]:
            return pooled(encode(images_BCHW))

        current = extract(Extraction(features, self.data, self.labelled, indices, self.batch_size, "linear head"), run)
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


def _stack(tokens_BND: Tensor) -> Tensor:
    by_kind = pooled(tokens_BND)
    return torch.stack([by_kind[kind] for kind in KINDS])
