"""Preparation of models for training: data-parallel wrapper and compilation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaim.core.distributed import Processes
from semaim.models.layers import Block, QueryBlock


def wrap(model: nn.Module, processes: Processes) -> Callable[..., Tensor]:
    """Wrap a model to synchronise gradients if there are several processes."""
    if processes.world_size == 1:
        return model
    ids = [processes.device.index] if processes.device.type == "cuda" else None
    return DeterministicDDP(model, device_ids=ids, gradient_as_bucket_view=True)


class DeterministicDDP(DistributedDataParallel):
    """DDP that sums gradients in the same order at every step, so that a continued run equals an uninterrupted one.

    DDP assigns gradients to buckets in the order of the first backward pass, and uses these buckets from the second
    step on. With more than two processes, the position in a bucket determines the order of summation and so the last
    bits. Therefore a warm-up pass before the first call builds the buckets; it has no other effect.
    """

    warmed_up = False

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output of the module."""
        if not self.warmed_up and torch.is_grad_enabled():
            self._warm_up(*inputs)
        return super().forward(*inputs)

    def _warm_up(self, *inputs: Tensor) -> None:
        """Forward and backward pass; restores random state, buffers and gradients afterwards."""
        self.warmed_up = True
        grad_sync, self.require_backward_grad_sync = self.require_backward_grad_sync, True
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        with torch.random.fork_rng(devices=self.device_ids or []):
            super().forward(*inputs).float().sum().backward()
        self.require_backward_grad_sync = grad_sync
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.module.zero_grad(set_to_none=True)


def compile_blocks(model: nn.Module) -> None:
    """Compile each transformer block in place, for both streams, the semantic pass and fine-tuning.

    Blocks share one compiled graph, so the start takes seconds instead of the minutes for the whole model.
    """
    for module in model.modules():
        if isinstance(module, Block | QueryBlock | timm_vit.Block):
            module.compile()
