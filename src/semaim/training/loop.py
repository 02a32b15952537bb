"""The one training loop, used by every task that trains.

Shapes: B images of one micro-batch of this process.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaim.checkpoints import store
from semaim.core.distributed import Processes
from semaim.core.files import read_json, write_json
from semaim.core.seeding import StepNoise
from semaim.data.loading import Batch, StepPlan, TrainingData, TrainingImages, UnreadableImages, training_batches
from semaim.errors import Interrupted, NonFiniteError, UserError
from semaim.runs.context import Run
from semaim.training.optimizers import Optimization, set_lr
from semaim.training.progress import Report, StepReport
from semaim.training.settings import Trainer
from semaim.training.state import TrainingState, compile_blocks, wrap

log = logging.getLogger(__name__)


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


def fit(task: TrainingTask, trainer: Trainer, run: Run) -> TrainingState:
    """Train to the end, from wherever the run folder's newest checkpoint left off.

    Raises:
        Interrupted: after a signal, with everything saved.
        NonFiniteError: before a step whose loss or gradient is not finite.
        UserError: for settings that do not fit, damaged checkpoints, a full disk or too many unreadable images.
    """
    processes, device = run.processes, run.processes.device
    plan = step_plan(task, trainer, run.seed, processes)
    per_epoch, total = plan.steps_per_epoch, trainer.epochs * plan.steps_per_epoch
    last = trainer.last_step(per_epoch)
    state = prepare(task, trainer, run, plan)
    evaluate(task, state, run, per_epoch, last)
    note_progress(run, state.step, last, plan)
    unreadable = UnreadableImages(task.training.max_unreadable)
    images = TrainingImages(task.training.images, task.training.transform, run.seed)
    batches = training_batches(images, plan, range(state.step, last), task.training.num_workers, device.type == "cuda")
    report = Report(trainer, plan, run, state.step, last)
    task.model.train()
    while state.step < last:
        lr = task.optimizer.lr(state.step, trainer.batch_size, round(trainer.warmup_epochs * per_epoch), total)
        step = train_step(task, trainer, state, batches, unreadable, run, lr)
        if state.ema is not None:
            state.ema.decay = trainer.ema_decay_at(state.step / per_epoch)
            state.ema.update(task.model)
        state.step, state.loss = state.step + 1, step.loss
        state.device_seconds += step.seconds * processes.world_size
        report.step(state.step, step, state.device_seconds)
        if step.stop or state.step == last or due(state.step, per_epoch, trainer):
            save(task, state, trainer, run, plan)
            note_progress(run, state.step, last, plan)
        if step.stop and state.step < last:
            raise Interrupted(f"stopped by {run.stop.agree(processes)} after step {state.step}")
        try:
            evaluate(task, state, run, per_epoch, last)
        except Interrupted:
            save(task, state, trainer, run, plan)
            raise
    return state


def step_plan(task: TrainingTask, trainer: Trainer, seed: int, processes: Processes) -> StepPlan:
    """Which images each step sees; raises UserError if the batch does not fit the data or the processes."""
    size, rank, world_size = len(task.training.images), processes.rank, processes.world_size
    return StepPlan(size, trainer.batch_size, seed, rank, world_size, trainer.accumulate)


def train_step(
    task: TrainingTask,
    trainer: Trainer,
    state: TrainingState,
    batches: Iterator[Batch],
    unreadable: UnreadableImages,
    run: Run,
    lr: float,
) -> StepReport:
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
        unreadable.note(batch)
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
    return StepReport(loss_value, norm_value, lr, time.perf_counter() - started, waited, round(missing), stop > 0)


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


def prepare(task: TrainingTask, trainer: Trainer, run: Run, plan: StepPlan) -> TrainingState:
    """Networks and optimizer on their device, continued from the newest checkpoint if there is one."""
    device = run.processes.device
    task.model.to(device)
    ema = ModelEmaV3(task.model, decay=trainer.ema_decay[0]) if trainer.ema else None
    if trainer.compile:
        compile_blocks(task.model)
    scaler = torch.amp.GradScaler(device.type, enabled=trainer.dtype(device) == torch.float16)
    state = TrainingState(task.model, wrap(task.model, run.processes), ema, task.optimizer.build(task.model), scaler)
    saved = store.newest(run.folder.checkpoints)
    if saved is not None:
        if (before := saved["data_position"]["data_set"]) != plan.dataset_size:
            raise UserError(
                f"the run in {run.folder.path} was trained on {before} images, these data (data.root) have "
                f"{plan.dataset_size}: give the run on these another name with run_name=..."
            )
        state.load_state_dict(saved, run.processes)
        task.load_state_dict(saved["task"])
        log.info("continuing after step %d", state.step)
    return state


def evaluate(task: TrainingTask, state: TrainingState, run: Run, per_epoch: int, last: int) -> None:
    """Evaluate where the task wants it: at the start, after epochs, at the end; once at each step."""
    if state.step % per_epoch and state.step != last:
        return
    done: dict[str, dict[str, float]] = run.processes.broadcast(evaluations(run))
    if str(state.step) in done:
        return
    metrics = task.evaluate(state, state.step // per_epoch, state.step == last, run)
    task.model.train()
    run.log(state.step, metrics)
    if run.processes.is_main and metrics:
        write_json(run.folder.path / "evaluations.json", done | {str(state.step): metrics})


def evaluations(run: Run) -> dict[str, dict[str, float]]:
    """Metrics of the evaluations made so far, by step."""
    return read_json(run.folder.path / "evaluations.json") or {}


def due(step: int, per_epoch: int, trainer: Trainer) -> bool:
    """Whether a checkpoint is due after a step."""
    by_epoch = step % (per_epoch * trainer.save_every_epochs) == 0
    return by_epoch or (trainer.save_every_steps is not None and step % trainer.save_every_steps == 0)


def save(task: TrainingTask, state: TrainingState, trainer: Trainer, run: Run, plan: StepPlan) -> None:
    """Save a checkpoint (all processes take part, the first writes) and delete those no longer kept."""
    content = checkpoint_content(task, state, run, plan)
    if not run.processes.is_main:
        return
    store.save(run.folder.checkpoints, state.step, content)
    every = trainer.milestone_every_epochs
    store.prune(
        run.folder.checkpoints,
        trainer.keep_checkpoints,
        lambda step: every is not None and step % (plan.steps_per_epoch * every) == 0,
    )


def note_progress(run: Run, step: int, last: int, plan: StepPlan) -> None:
    """Say in the run folder how far training is."""
    if run.processes.is_main:
        run.folder.set_status("running", step=step, last_step=last, batch_size=plan.batch_size)


def checkpoint_content(task: TrainingTask, state: TrainingState, run: Run, plan: StepPlan) -> dict[str, Any]:
    """What a checkpoint holds; all processes call it."""
    position = {"epochs": state.step / plan.steps_per_epoch, "images_seen": state.step * plan.batch_size}
    return state.state_dict(run.processes) | {
        "task": task.state_dict(),
        "config": run.config,
        "choices": run.choices,
        "overrides": list(run.overrides),
        "device": run.processes.device.type,
        "data_position": position | {"data_set": plan.dataset_size},
    }
