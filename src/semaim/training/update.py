"""Updates of weights that a flag on the device can skip, so that the host need not wait until it knows the flag.

`skip` is a bool tensor without dimensions, on the device of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from semaim.training.strategies import local_state


@torch.no_grad()
def update_weights(optimizer: Optimizer, skip: Tensor) -> None:
    """Take an optimizer's step unless the flag is set.

    The fused kernels of torch's AdamW, Adam and Adagrad (`fused=true`) read the flag themselves. Any other optimizer
    takes its step, and what it has changed is put back if the flag is set. This costs the memory and the time of a copy
    of weights and state. What it keeps on the host, such as Adam's number of steps without `fused`, is not put back
    where the weights are on a GPU.
    """
    # Fused SGD reads the flag, too, but would leave its new momentum undefined if the first step is skipped.
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not isinstance(optimizer, torch.optim.SGD):
        fused: Any = optimizer
        fused.grad_scale, fused.found_inf = None, skip.float()
        optimizer.step()
        del fused.grad_scale, fused.found_inf
        return
    before = {name: each.clone() for name, each in _changing(optimizer, skip.device).items()}
    optimizer.step()
    for name, each in _changing(optimizer, skip.device).items():  # state that is new would begin with zeros
        each.copy_(torch.where(skip, before.get(name, 0.0), each))


def _changing(optimizer: Optimizer, device: torch.device) -> dict[tuple[int, str], Tensor]:
    """Weights and state that a step changes on a device, by parameter (or group) and name."""
    found: dict[tuple[int, str], Tensor] = {}
    for group in optimizer.param_groups:
        parameters = [each for each in group["params"] if each.grad is not None]
        found |= {(id(each), "weight"): each for each in parameters}
        for owner, values in ((group, group), *((each, optimizer.state.get(each, {})) for each in parameters)):
            tensors = {name: each for name, each in values.items() if isinstance(each, Tensor)}
            found |= {(id(owner), name): each for name, each in tensors.items() if each.device == device}
    return found


@torch.no_grad()
def update_average(ema: ModelEmaV3, model: nn.Module, decay: float, skip: Tensor) -> None:
    """Move the average of a model's weights and buffers towards them by 1 - decay, unless the flag is set."""
    averages, values = [], []
    for average, value in zip(local_state(ema.module), local_state(model), strict=True):
        if average.is_floating_point():
            averages.append(average)
            values.append(value)
        else:
            average.copy_(value)
    weight = torch.where(skip, 0.0, 1.0 - decay)
    torch._foreach_lerp_(averages, values, [weight.to(each.dtype) for each in averages])
