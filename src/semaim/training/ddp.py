"""The model as training calls it: for several processes, and compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaim.core.distributed import Processes
from semaim.models.layers import Block, QueryBlock


def wrap(model: nn.Module, processes: Processes) -> Callable[..., Tensor]:
    """The model as training calls it: synchronising gradients if there are several processes."""
    if processes.world_size == 1:
        return model
    ids = [processes.device.index] if processes.device.type == "cuda" else None
    return SteadyDDP(model, device_ids=ids, gradient_as_bucket_view=True)


class SteadyDDP(DistributedDataParallel):
    """DDP that adds gradients up in the same order at every step, so that a continued run equals an undisturbed one.

    DDP arranges gradients in buckets by the order in which they come in the first backward pass after a start, and from
    then on sums them bucket by bucket. With more than two processes the place in a bucket decides in which order the
    terms are added, hence the last bits. So the first call is rehearsed, which leaves no trace but the buckets.
    """

    rehearsed = False

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output of the module."""
        if not self.rehearsed and torch.is_grad_enabled():
            self._rehearse(*inputs)
        return super().forward(*inputs)

    def _rehearse(self, *inputs: Tensor) -> None:
        """Forward and backward; randomness, statistics of norms and gradients are afterwards as they were before."""
        self.rehearsed = True
        synchronises, self.require_backward_grad_sync = self.require_backward_grad_sync, True
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        with torch.random.fork_rng(devices=self.device_ids or []):
            super().forward(*inputs).float().sum().backward()
        self.require_backward_grad_sync = synchronises
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.module.zero_grad(set_to_none=True)


def compile_blocks(model: nn.Module) -> None:
    """Compile each transformer block in place, which serves both streams, the semantic pass and fine-tuning.

    Block by block rather than as a whole: all blocks share one compiled form, and the start takes seconds, not minutes.
    """
    for module in model.modules():
        if isinstance(module, Block | QueryBlock | timm_vit.Block):
            module.compile()
