"""Training state: networks, optimizer, scaler, step and random state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.core.seeding import rng_state, set_rng_state
from semaim.errors import UserError
from semaim.training.strategies import Strategy

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything that changes during training.

    Attributes:
        model: the model; with FSDP each process has a part of its weights.
        forward: the forward pass of training.
        ema: moving average of the model, or None.
        optimizer: the optimizer.
        scaler: loss scaler; enabled for fp16 only.
        step: completed optimizer steps.
        loss: loss of the last step.
        device_seconds: time of all steps, summed over processes.
        flops: floating-point operations of all steps, on all processes; None if they are unknown. Counted by the first
            process only.
        strategy: how the processes share the networks.
    """

    model: nn.Module
    forward: Callable[..., Any]
    ema: ModelEmaV3 | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    loss: float = float("nan")
    device_seconds: float = 0.0
    flops: int | None = 0
    strategy: Strategy = field(default_factory=Strategy)

    def whole(self) -> tuple[Any, Any]:
        """The model and its moving average (None if there is none), to evaluate them; collective.

        Each process can use them alone. With FSDP they are copies, which take memory until they are dropped.
        """
        average = None if self.ema is None else self.strategy.whole(self.ema.module)
        return self.strategy.whole(self.model), average

    def state_dict(self, processes: Processes) -> dict[str, Any]:
        """The state in plain types. Collective, since each process has its own random state."""
        gathered = self.strategy.gathered
        return {
            "architecture": getattr(self.model, "architecture", None),
            "model": gathered(self.model.state_dict()),
            "ema": gathered(self.ema.module.state_dict()) if self.ema else None,
            "loss": self.loss,
            "device_seconds": self.device_seconds,
            "flops": self.flops,
            "optimizer": gathered(self.optimizer.state_dict()),
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
            self._load(self.model, state["model"])
            if self.ema is not None:
                self._load(self.ema.module, state["ema"])
            self._load_optimizer(state["optimizer"])
        except Exception as error:  # values of another kind raise any exception
            raise UserError(f"the checkpoint is of another architecture than the model: {error}") from error
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.loss = state["step"], state["loss"]
        self.device_seconds = state["device_seconds"]
        self.flops = state.get("flops")  # earlier versions did not count them
        if len(state["rng"]) == processes.world_size:
            set_rng_state(state["rng"][processes.rank], processes.device)
        else:
            log.info("the checkpoint is of %s, now there are %d: same images and orders per step, results equal up to "
                     "rounding", plural(len(state["rng"]), "process", "es"), processes.world_size)  # fmt: skip

    def _load(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        own = module.state_dict()
        module.load_state_dict({name: self.strategy.part(value, own.get(name)) for name, value in weights.items()})

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Load its state, in which parameters have the numbers of their places in the groups."""
        own = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        of_parameters = {
            number: {name: self.strategy.part(value, own[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        self.optimizer.load_state_dict(state | {"state": of_parameters})
