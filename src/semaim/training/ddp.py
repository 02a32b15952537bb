"""Preparation of models for training: data-parallel wrapper and compilation."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaim.core.cache_folder import cache_folder
from semaim.core.distributed import Processes
from semaim.models.layers import TimmDropPath
from semaim.models.predictor import Predictor


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a network; empty if it has none."""
    if isinstance(network, Predictor):
        return [block for stream in network.streams for block in stream.blocks]
    return list(getattr(network, "blocks", ()))  # timm's name


def wrap(model: nn.Module, processes: Processes) -> Callable[..., Any]:
    """Wrap a model to synchronise gradients if there are several processes."""
    if processes.world_size == 1:
        return model
    ids = [processes.device.index] if processes.device.type == "cuda" else None
    wrapped = DeterministicDDP(model, device_ids=ids, gradient_as_bucket_view=True)
    # Buffers are constant, or statistics that `evaluate` shares when they are needed: no broadcast at every step.
    # An attribute, because the argument has another name in newer versions of torch.
    wrapped.broadcast_buffers = False
    return wrapped


class DeterministicDDP(DistributedDataParallel):
    """DDP that sums gradients in the same order at every step, so that a continued run equals an uninterrupted one.

    DDP assigns gradients to buckets in the order of the first backward pass, and uses these buckets from the second
    step on. With more than two processes, the position in a bucket determines the order of summation and so the last
    bits. Therefore a warm-up pass before the first call builds the buckets; it has no other effect.
    """

    warmed_up = False

    def forward(self, *inputs: Tensor) -> Any:
        """The output of the module: a tensor, or a tuple whose first has the gradient."""
        if not self.warmed_up and torch.is_grad_enabled():
            self._warm_up(*inputs)
        return super().forward(*inputs)

    def _warm_up(self, *inputs: Tensor) -> None:
        """Forward and backward pass; restores random state, buffers and gradients afterwards."""
        self.warmed_up = True
        grad_sync, self.require_backward_grad_sync = self.require_backward_grad_sync, True
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        with torch.random.fork_rng(devices=self.device_ids or []):
            output = super().forward(*inputs)
            (output if isinstance(output, Tensor) else output[0]).float().sum().backward()
        self.require_backward_grad_sync = grad_sync
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.module.zero_grad(set_to_none=True)


def compile_blocks(network: nn.Module) -> None:
    """Compile each transformer block in place.

    Blocks share compiled graphs, so the start takes seconds instead of the minutes for the whole network. Compiled
    kernels are kept in the user's cache folder, which nodes of a cluster share, unless TORCHINDUCTOR_CACHE_DIR is set.
    """
    if (kept := cache_folder("torchinductor")) is not None and os.access(kept, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))
    for block in transformer_blocks(network):
        for name, child in block.named_children():
            if isinstance(child, DropPath):
                setattr(block, name, TimmDropPath(child.drop_prob))
        block.compile()
