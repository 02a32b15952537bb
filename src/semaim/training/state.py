"""What training carries from step to step, as a whole: networks, optimizer, scaler, position and randomness."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import vision_transformer as timm_vit
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from semaim.core.distributed import Processes
from semaim.core.seeding import rng_state, set_rng_state
from semaim.errors import UserError
from semaim.models.layers import Block, QueryBlock

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that changes while training.

    Attributes:
        model: the bare model.
        forward: the model as training calls it, wrapped for several processes.
        ema: its moving average, or None.
        optimizer, scaler: as usual; the scaler is disabled but for fp16.
        step: optimizer steps done.
        loss: that of the last step.
        device_seconds: time that the steps have taken, summed over processes.
    """

    model: nn.Module
    forward: Callable[..., Tensor]
    ema: ModelEmaV3 | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    loss: float = float("nan")
    device_seconds: float = 0.0

    def state_dict(self, processes: Processes) -> dict[str, Any]:
        """Everything in plain types. All processes call it, since each has randomness of its own."""
        return {
            "architecture": getattr(self.model, "architecture", None),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "loss": self.loss,
            "device_seconds": self.device_seconds,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": processes.gather(rng_state(processes.device)),
        }

    def load_state_dict(self, state: dict[str, Any], processes: Processes) -> None:
        """Undo of `state_dict`, also with another number of processes (which then have fresh randomness).

        Raises:
            UserError: if the state is of other networks.
        """
        if (state["ema"] is None) != (self.ema is None):
            raise UserError("trainer.ema differs from that of the checkpoint: it must be the same to continue")
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint is of another architecture than the model: {error}") from error
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.loss = state["step"], state["loss"]
        self.device_seconds = state["device_seconds"]
        if len(state["rng"]) == processes.world_size:
            set_rng_state(state["rng"][processes.rank], processes.device)
        else:
            log.info("the checkpoint is of %d processes, now there are %d: same images and orders per step, results "
                     "equal up to rounding", len(state["rng"]), processes.world_size)  # fmt: skip


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
