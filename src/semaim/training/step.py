"""One optimizer step: forward, backward, one look at the result, update.

Shapes: B images of one micro-batch of this process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaim.checkpoints import store
from semaim.core.files import write_json
from semaim.core.seeding import StepNoise
from semaim.data.loading import Batch, TrainingData, UnreadableImages
from semaim.errors import NonFiniteError
from semaim.runs.context import Run
from semaim.training.optimizers import Optimization, set_lr
from semaim.training.settings import TrainerSettings
from semaim.training.state import TrainingState


class TrainingTask(Protocol):
    """What the loop asks of a task."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def training(self) -> TrainingData: ...

    @property
    def optimizer(self) -> Optimization: ...

    def loss(self, batch: Batch, state: TrainingState, noise: StepNoise) -> Tensor:
        """Loss of each image, (B,), with gradient."""
        ...

    def evaluate(self, state: TrainingState, epoch: int, last: bool, run: Run) -> dict[str, float]:
        """Metrics after an epoch (0: before training); empty if none are due."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of the task besides its model, in plain types."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo of `state_dict`; raises UserError if the run cannot go on from there."""
        ...


@dataclass
class StepResult:
    """What one step says of itself.

    Attributes:
        loss: mean over all images.
        grad_norm: before clipping.
        lr: learning rate.
        seconds: it took.
        waited: seconds of these, for images.
        unreadable: images that could not be read so far, counted once by each process.
        stop: whether a signal asked to stop.
    """

    loss: float
    grad_norm: float
    lr: float
    seconds: float
    waited: float
    unreadable: int
    stop: bool


def train_step(
    task: TrainingTask,
    trainer: TrainerSettings,
    state: TrainingState,
    batches: Iterator[Batch],
    unreadable: UnreadableImages,
    run: Run,
    lr: float,
) -> StepResult:
    """One optimizer step: micro-batches forward and backward, one look at the result, then the update."""
    device, started, waited = run.processes.device, time.perf_counter(), 0.0
    dtype = trainer.dtype(device)
    noise = StepNoise(run.seed, state.step, trainer.batch_size)
    losses: list[tuple[Tensor, Tensor]] = []  # of each micro-batch: which images, and their losses
    state.optimizer.zero_grad(set_to_none=True)
    for micro in range(trainer.accumulate):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        unreadable.record(batch)
        batch = batch.to(device)
        ddp = state.forward if isinstance(state.forward, DistributedDataParallel) else None
        with ddp.no_sync() if ddp and micro + 1 < trainer.accumulate else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss_B = task.loss(batch, state, noise)
            state.scaler.scale(loss_B.mean() / trainer.accumulate).backward()
        losses.append((batch.index_B, loss_B.detach()))
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in task.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    loss = torch.stack([loss_B.mean() for _, loss_B in losses]).mean() / run.processes.world_size
    # The one exchange between processes, and the one wait for the device, of a step.
    counts = torch.tensor([float(run.stop.requested), len(unreadable.names)], device=device)
    seen = torch.cat([torch.stack([loss, norm / run.processes.world_size]), counts])
    loss_value, norm_value, stop, missing = run.processes.sum(seen).tolist()
    scaled = state.scaler.is_enabled()  # fp16 expects an overflow now and then: the scaler skips that update
    if not math.isfinite(loss_value) or not (math.isfinite(norm_value) or (scaled and state.scaler.get_scale() >= 1)):
        raise not_finite(task, state, run, losses, loss_value, norm_value)
    if trainer.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, trainer.clip_grad, norm)
    set_lr(state.optimizer, lr)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return StepResult(loss_value, norm_value, lr, time.perf_counter() - started, waited, round(missing), stop > 0)


def not_finite(
    task: TrainingTask, state: TrainingState, run: Run, losses: list[tuple[Tensor, Tensor]], loss: float, norm: float
) -> NonFiniteError:
    """The error for a step that must not be taken, with the images of the step in a file beside the journal."""
    source = task.training.images
    mine = [
        {"image": source.name(int(index)), "loss": float(value)}
        for index_B, loss_B in losses
        for index, value in zip(index_B, loss_B, strict=True)
    ]
    images = [image for process in run.processes.gather(mine) for image in process]
    guilty = [image["image"] for image in images if not math.isfinite(image["loss"])]
    file = run.folder.path / f"not_finite_step_{state.step:08d}.json"
    if run.processes.is_main:
        write_json(file, {"step": state.step, "loss": loss, "grad_norm": norm, "images": images})
    saved = store.list_steps(run.folder.checkpoints)
    what = f"the loss of {len(guilty)} images ({', '.join(guilty[:3])})" if guilty else "the gradient"
    return NonFiniteError(
        f"{what} is not finite at step {state.step}; training stopped before the update, and the last good checkpoint "
        f"is {saved[-1][1] if saved else 'none yet'}. All images of the step are in {file}. Look at them; if they are "
        f"sound, lower optimizer.base_lr or set trainer.precision=float32"
    )
