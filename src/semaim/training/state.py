"""Training state: networks, optimizer, scaler, step and random state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.core.seeding import rng_state, set_rng_state
from semaim.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything that changes during training.

    Attributes:
        model: the unwrapped model.
        forward: the model for training, wrapped if there are several processes.
        ema: moving average of the model, or None.
        optimizer: the optimizer.
        scaler: loss scaler; enabled for fp16 only.
        step: completed optimizer steps.
        loss: loss of the last step.
        device_seconds: time of all steps, summed over processes.
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
        """The state in plain types. Collective, since each process has its own random state."""
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
        """Restore `state_dict`; with another number of processes, random states are not restored.

        Raises:
            UserError: if the state belongs to other networks.
        """
        if (state["ema"] is None) != (self.ema is None):
            raise UserError("trainer.ema differs from that of the checkpoint: it must be the same to continue")
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # values of another kind raise any exception
            raise UserError(f"the checkpoint is of another architecture than the model: {error}") from error
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.loss = state["step"], state["loss"]
        self.device_seconds = state["device_seconds"]
        if len(state["rng"]) == processes.world_size:
            set_rng_state(state["rng"][processes.rank], processes.device)
        else:
            log.info("the checkpoint is of %s, now there are %d: same images and orders per step, results equal up to "
                     "rounding", plural(len(state["rng"]), "process", "es"), processes.world_size)  # fmt: skip
