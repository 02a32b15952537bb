"""One optimizer step: forward, backward, finiteness check, update.

Shapes: B images of one micro-batch of this process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaim.checkpoints import store
from semaim.core.files import write_json
from semaim.core.formatting import plural
from semaim.core.seeding import StepNoise
from semaim.data.loading import Batch, TrainingData, UnreadableImages
from semaim.errors import NonFiniteError
from semaim.runs.context import Run
from semaim.training.optimizers import Optimization, set_lr
from semaim.training.profiling import region
from semaim.training.settings import TrainerSettings
from semaim.training.state import TrainingState


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


@dataclass
class StepResult:
    """Result of one step.

    Attributes:
        loss: mean over all images.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate.
        seconds: duration of the step.
        data_wait: seconds spent waiting for images.
        unreadable: unreadable images so far, summed over processes.
        stop: whether a process received a stop signal.
    """

    loss: float
    grad_norm: float
    lr: float
    seconds: float
    data_wait: float
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
    """One optimizer step: forward and backward over micro-batches, finiteness check, then the update."""
    device, started, data_wait = run.processes.device, time.perf_counter(), 0.0
    dtype = trainer.dtype(device)
    noise = StepNoise(run.seed, state.step, trainer.batch_size)
    losses: list[tuple[Tensor, Tensor]] = []  # per micro-batch: indices and losses of its images
    state.optimizer.zero_grad(set_to_none=True)
    for micro in range(trainer.accumulate):
        fetch_started = time.perf_counter()
        with region("data"):
            batch = next(batches)
        data_wait += time.perf_counter() - fetch_started
        unreadable.record(batch)
        batch = batch.to(device)
        ddp = state.forward if isinstance(state.forward, DistributedDataParallel) else None
        with ddp.no_sync() if ddp and micro + 1 < trainer.accumulate else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), region("forward"):
                loss_B = task.loss(batch, state, noise)
            with region("backward"):
                state.scaler.scale(loss_B.mean() / trainer.accumulate).backward()
        losses.append((batch.index_B, loss_B.detach()))
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in task.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    loss = torch.stack([loss_B.mean() for _, loss_B in losses]).mean() / run.processes.world_size
    # One all-reduce and one device synchronisation per step.
    counts = torch.tensor([float(run.stop.requested), len(unreadable.reasons)], device=device)
    totals = torch.cat([torch.stack([loss, norm / run.processes.world_size]), counts])
    loss_value, norm_value, stop, num_unreadable = run.processes.sum(totals).tolist()
    scaled = state.scaler.is_enabled()  # occasional overflows are normal in fp16: the scaler skips these updates
    if not math.isfinite(loss_value) or not (math.isfinite(norm_value) or (scaled and state.scaler.get_scale() >= 1)):
        raise non_finite_error(task, state, run, losses, loss_value, norm_value)
    if trainer.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, trainer.clip_grad, norm)
    set_lr(state.optimizer, lr)
    with region("optimizer"):
        state.scaler.step(state.optimizer)
    state.scaler.update()
    task.after_update()
    return StepResult(
        loss_value, norm_value, lr, time.perf_counter() - started, data_wait, round(num_unreadable), stop > 0
    )


def non_finite_error(
    task: TrainingTask, state: TrainingState, run: Run, losses: list[tuple[Tensor, Tensor]], loss: float, norm: float
) -> NonFiniteError:
    """Build the error for a non-finite step, and write the images of the step to a file in the run folder."""
    image_set = task.training.images
    local_images = [
        {"image": image_set.name(int(index)), "loss": float(value)}
        for index_B, loss_B in losses
        for index, value in zip(index_B, loss_B, strict=True)
    ]
    images = [image for process in run.processes.gather(local_images) for image in process]
    non_finite = [image["image"] for image in images if not math.isfinite(image["loss"])]
    file = run.folder.path / f"not_finite_step_{state.step:08d}.json"
    if run.processes.is_main:
        named = [each | {"loss": _in_json(each["loss"])} for each in images]
        content = {"loss": _in_json(loss), "grad_norm": _in_json(norm), "images": named}
        write_json(file, {"step": state.step, **content})
    what = (
        f"the loss of {plural(len(non_finite), 'image')} ({', '.join(map(repr, non_finite[:3]))})"
        if non_finite
        else "the gradient"
    )
    return NonFiniteError(
        f"{what} is not finite at step {state.step}; training stopped before the update, and {last_good(run)}. All "
        f"images of the step are in {file}. Check them; if they are valid, lower optimizer.base_lr or set "
        f"trainer.precision=float32"
    )


def last_good(run: Run) -> str:
    """Which checkpoint of a run is the last, for messages."""
    saved = store.list_steps(run.folder.checkpoints)
    return f"the last good checkpoint is {saved[-1][1]}" if saved else "there is no checkpoint yet"


def _in_json(value: float) -> float | str:
    """A number as JSON has it; NaN and infinity as text."""
    return value if math.isfinite(value) else str(value)
