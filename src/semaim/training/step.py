"""One optimizer step: forward, backward, finiteness check, update. The host waits for none of it.

Shapes: B images of one micro-batch of this process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.data.loading import TrainingData, UnreadableImages
from semaim.runs.context import Run
from semaim.training.look import Step, Unseen
from semaim.training.optimizers import Optimization, set_lr
from semaim.training.profiling import region
from semaim.training.settings import TrainerSettings
from semaim.training.state import TrainingState
from semaim.training.strategies import total_norm
from semaim.training.update import update_average, update_weights


class TrainingTask:
    """Base class of what the training loop trains.

    Attributes:
        model: the network that the optimizer updates.
        training: images and their augmentation.
        optimizer: optimizer and learning rates.
    """

    model: nn.Module
    training: TrainingData
    optimizer: Optimization

    @property
    def main_network(self) -> nn.Module:
        """The network that takes most of the time of a step, whose blocks `trainer.compile` compiles."""
        return self.model

    def loss(self, batch: Batch, state: TrainingState, noise: StepNoise) -> Tensor:
        """Loss per image, (B,), with gradient."""
        raise NotImplementedError

    def step_flops(self) -> int | None:
        """Floating-point operations of a training step per image, forward and backward; None if they are unknown."""
        return None

    def after_update(self) -> None:
        """Called after the optimizer's update of a step."""

    def evaluate(self, state: TrainingState, epoch: int, last: bool, run: Run) -> dict[str, float]:
        """Metrics after an epoch (0: before training); empty if no evaluation is due."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of the task for checkpoints, besides its model, in plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; raises UserError if the run cannot continue from it."""


def train_step(
    task: TrainingTask,
    trainer: TrainerSettings,
    state: TrainingState,
    batches: Iterator[Batch],
    unreadable: UnreadableImages,
    run: Run,
    lr: float,
    ema_decay: float,
    unseen: Unseen,
) -> None:
    """One optimizer step: forward and backward over micro-batches, finiteness check, then the update.

    Its results are added to the unseen steps. A step that is not finite, and every step after it, updates nothing.

    Args:
        task, trainer, state, run: what is trained, and how.
        batches: micro-batches on the device.
        unreadable: counts unreadable images.
        lr: learning rate.
        ema_decay: decay of the moving average, if there is one.
        unseen: steps since the host last looked.
    """
    device, data_wait = run.processes.device, 0.0
    dtype = trainer.dtype(device)
    noise = StepNoise(run.seed, state.step, trainer.batch_size)
    if not unseen.steps:
        unseen.began = time.perf_counter()
    losses: list[tuple[Tensor, Tensor]] = []  # per micro-batch: indices and losses of its images
    state.optimizer.zero_grad(set_to_none=True)
    for micro in range(trainer.accumulate):
        fetch_started = time.perf_counter()
        with region("data"):
            batch = next(batches)
        data_wait += time.perf_counter() - fetch_started
        unreadable.record(batch)
        with state.strategy.no_sync() if micro + 1 < trainer.accumulate else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), region("forward"):
                loss_B = task.loss(batch, state, noise)
            with region("backward"):
                state.scaler.scale(loss_B.mean() / trainer.accumulate).backward()
        losses.append((batch.index_B.clone(), loss_B.detach()))  # a copy, since a worker's tensors hold open files
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in task.model.parameters() if p.grad is not None]
    norm = total_norm(parameters)
    loss = torch.stack([loss_B.mean() for _, loss_B in losses]).mean() / run.processes.world_size
    totals = run.processes.sum(torch.stack([loss, norm / run.processes.world_size]))
    failed, overflow = found_wrong(totals, state.scaler)
    unseen.failed = unseen.failed | failed
    unseen.steps.append(Step(state.step, torch.cat([totals, unseen.failed[None]]), losses, lr, data_wait))
    if trainer.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, trainer.clip_grad, norm)
    set_lr(state.optimizer, lr)
    with region("optimizer"):
        update_weights(state.optimizer, skip=unseen.failed | overflow)
    state.scaler.update()
    task.after_update()
    if state.ema is not None:
        update_average(state.ema, task.model, ema_decay, skip=unseen.failed)


def found_wrong(totals_2: Tensor, scaler: torch.amp.GradScaler) -> tuple[Tensor, Tensor]:
    """Whether a step has failed, and whether its gradient is not finite; bool tensors on the device.

    Occasional overflows of the gradient are normal in fp16: the scaler lowers its scale, and the update is skipped.

    Args:
        totals_2: loss and norm of the gradient.
        scaler: loss scaler.
    """
    wrong_loss, overflow = (~totals_2.isfinite()).unbind()
    if not scaler.is_enabled():
        return wrong_loss | overflow, overflow
    scale = scaler.scale(torch.ones_like(totals_2[0]))
    return wrong_loss | (overflow & (scale < 1)), overflow
