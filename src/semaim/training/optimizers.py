"""Parameter groups, and the learning rate of a step.

Source of the rules: MAE (arXiv 2111.06377), appendix A.1, which SemAIM follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from semaim.errors import UserError
from semaim.training.schedules import Cosine, Schedule

COSINE = Cosine()
LARGEST_LR = 3e38  # torch takes no larger number; weights are no longer finite long before


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay, and without it for one-dimensional parameters (biases, norms).

    The class token has weight decay in pretraining, as in the authors' code. Position embeddings are fixed and not
    included.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def layer_decay_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of a vision transformer with learning rates that decrease from the head to the patch embedding.

    A parameter of layer i has its learning rate multiplied by layer_decay^(depth + 1 - i): i = 0 for the patch
    embedding, positions and class token, k + 1 for block k, depth + 1 for everything after the blocks. No weight decay
    on one-dimensional parameters, positions and the class token. Source: BEiT (arXiv 2106.08254), MAE, SemAIM. (timm's
    layer decay assigns the norm after the last block to that block, so it is not used.)

    Raises:
        UserError: if the model is not a vision transformer with a head.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(model, "head"):
        raise UserError("optimizer.groups: a layer decay is for fine-tuning a vision transformer (task=finetune)")
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, len(blocks))
        decays = parameter.ndim > 1 and name not in ("pos_embed", "cls_token", "reg_token", "dist_token")
        group = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (len(blocks) + 1 - layer),
        }
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """Layer index of a vision transformer's parameter, from 0 to depth + 1."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    stem = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "dist_token", "norm_pre.")
    return 0 if name.startswith(stem) else depth + 1


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Peak learning rate for a batch: base_lr is for 256 images per step."""
    return base_lr * batch_size / 256


def lr_at(
    step: int, peak: float, floor: float, warmup_steps: int, total_steps: int, schedule: Schedule = COSINE
) -> float:
    """Learning rate of a step (from 0): linear from 0 to the peak over the warm-up, then as scheduled to the floor."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return floor + (peak - floor) * schedule(step, warmup_steps, total_steps)


@dataclass(frozen=True)
class Optimization:
    """The `optimizer` group of the configuration: an optimizer and its learning rates.

    Args:
        optimizer: builds the optimizer from parameter groups.
        groups: builds the groups from a model and the weight decay; a group's `lr_scale` multiplies its learning rate.
        base_lr: peak learning rate for 256 images per step.
        min_lr: what the schedule falls to.
        weight_decay: weight decay of parameters with more than one dimension.
        schedule: how the learning rate falls after the warm-up.
    """

    optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer]
    groups: Callable[[nn.Module, float], list[dict[str, Any]]]
    base_lr: float
    min_lr: float
    weight_decay: float
    schedule: Schedule = COSINE

    def build(self, model: nn.Module) -> Optimizer:
        """Build the optimizer of a model."""
        groups = self.groups(model, self.weight_decay)
        try:
            return self.optimizer(groups)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the optimizer rejects its settings in optimizer.optimizer: {error}") from error

    def lr(self, step: int, batch_size: int, warmup_steps: int, total_steps: int) -> float:
        """Learning rate of a step (from 0)."""
        peak = scaled_lr(self.base_lr, batch_size)
        return lr_at(step, peak, self.min_lr, warmup_steps, total_steps, self.schedule)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate, multiplied by the `lr_scale` of each group."""
    for group in optimizer.param_groups:
        group["lr"] = min(lr * group.get("lr_scale", 1.0), LARGEST_LR)


def last_lr(optimizer: Optimizer) -> float:
    """The learning rate of the last step, without the `lr_scale` of its groups."""
    group = optimizer.param_groups[0]
    return float(group["lr"] / group.get("lr_scale", 1.0))
