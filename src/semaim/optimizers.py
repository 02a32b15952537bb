"""Parameter groups, learning-rate scaling and the schedule.

Source of the rules: MAE (arXiv 2111.06377), appendix A.1, which SemAIM follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from semaim.errors import UserError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that decay, and the one-dimensional ones (biases, norms), which do not.

    The class token decays in pretraining, as in the authors' code. Position embeddings are fixed and not among these.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Peak learning rate for a batch: base_lr is for 256 images per step."""
    return base_lr * batch_size / 256


def lr_at(step: int, peak: float, floor: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of a step (from 0): linear from 0 to the peak over the warm-up, then half a cosine to the floor."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimization:
    """An optimizer and its learning rates, as the configuration describes them.

    Args:
        optimizer: makes the optimizer from parameter groups.
        base_lr: peak learning rate for 256 images per step.
        min_lr: learning rate at the end.
        weight_decay: for parameters of more than one dimension.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        base_lr: float,
        min_lr: float,
        weight_decay: float,
    ) -> None:
        if base_lr <= 0 or min_lr < 0 or weight_decay < 0:
            raise UserError(
                f"optimizer.base_lr={base_lr} must be positive, optimizer.min_lr={min_lr} and "
                f"optimizer.weight_decay={weight_decay} not negative"
            )
        self.optimizer = optimizer
        self.base_lr = base_lr
        self.min_lr = min_lr
        self.weight_decay = weight_decay

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer of a model's parameters."""
        try:
            return self.optimizer(parameter_groups(model, self.weight_decay))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the optimizer does not take optimizer.optimizer as it is set: {error}") from error

    def lr(self, step: int, batch_size: int, warmup_steps: int, total_steps: int) -> float:
        """Learning rate of a step (from 0)."""
        return lr_at(step, scaled_lr(self.base_lr, batch_size), self.min_lr, warmup_steps, total_steps)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Use a learning rate from now on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
