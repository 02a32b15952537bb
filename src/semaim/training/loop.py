"""The training loop of all training tasks.

Shapes: B images of one micro-batch of this process.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from semaim.checkpoints import store
from semaim.core.distributed import Processes
from semaim.core.files import write_json
from semaim.core.finite import listed, non_finite
from semaim.core.formatting import plural
from semaim.data.loading import StepPlan, TrainingData, TrainingImages, UnreadableImages, training_batches
from semaim.data.on_device import OnDevice
from semaim.errors import Interrupted, NonFiniteError, UserError
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.training.ddp import compile_blocks
from semaim.training.look import Unseen, last_good, look, look_is_due, steps_between_looks
from semaim.training.profiling import Profile
from semaim.training.progress import ProgressReporter, report_restored, report_unused
from semaim.training.settings import Length, TrainerSettings
from semaim.training.state import TrainingState
from semaim.training.step import TrainingTask, train_step
from semaim.training.strategies import strategy_of

log = logging.getLogger(__name__)


def fit(task: TrainingTask, trainer: TrainerSettings, run: Run) -> TrainingState:
    """Train to the end, continuing from the newest checkpoint in the run folder.

    Raises:
        Interrupted: after a signal; the state is saved.
        NonFiniteError: before an update with a non-finite loss or gradient, and before saving a non-finite state.
        UserError: for settings that do not fit, damaged checkpoints, a full disk or too many unreadable images.
    """
    with Profile(trainer.profile_steps, run) as profile:
        return _train(task, trainer, run, profile)


def _train(task: TrainingTask, trainer: TrainerSettings, run: Run, profile: Profile) -> TrainingState:
    processes = run.processes
    plan = step_plan(task, trainer, run.seed, processes)
    length = length_of(task, trainer, plan)
    per_epoch, last = plan.steps_per_epoch, length.last
    report_unused(plan)
    flops = task.step_flops() if processes.is_main else None  # of the model as it is, not yet wrapped or compiled
    state = prepare(task, trainer, run, length)
    run.stop.at_once = lambda: lost_at_once(run, state.step)
    unreadable = UnreadableImages(task.training.max_unreadable, task.training.unreadable)
    images = TrainingImages(task.training.images, task.training.transform, run.seed)
    batches = training_batches(images, plan, range(state.step, last), task.training.loading, processes, run.stop)
    batches = OnDevice(batches, processes.device)
    evaluate(task, state, run, per_epoch, last)
    write_progress(run, state.step, last, plan)
    progress = ProgressReporter(task.training, flops, trainer, length, run, state.step)
    failed = torch.zeros((), dtype=torch.bool, device=processes.device)
    unseen = Unseen(failed, steps_between_looks(trainer, processes.device))
    profile.begin(state.step, last)
    task.model.train()
    while state.step < last:
        lr = task.optimizer.lr(state.step, trainer.batch_size, length.warmup, length.total)
        ema_decay = trainer.ema_decay_at(state.step / per_epoch)
        try:
            with trainer.matrix_products(processes.device):
                train_step(task, trainer, state, batches, unreadable, run, lr, ema_decay, unseen)
        except Interrupted as error:  # no images came, and the other processes wait for this one
            if processes.world_size == 1:
                take_results(task, state, unseen, unreadable, progress, run)
                save_checkpoint(task, state, trainer, run, plan)
            raise Interrupted(f"{error}; {lost_at_once(run, state.step)}") from error
        state.step += 1
        profile.step()
        at_end, save = state.step == last, checkpoint_is_due(state.step, per_epoch, trainer)
        if not (at_end or save or state.step % per_epoch == 0 or look_is_due(unseen, state.step, trainer)):
            continue
        stop = take_results(task, state, unseen, unreadable, progress, run)
        if stop or at_end or save:
            save_checkpoint(task, state, trainer, run, plan)
            write_progress(run, state.step, last, plan)
        if stop and not at_end:
            raise Interrupted(f"stopped by {run.stop.agree(processes)} after step {state.step}, which is saved")
        try:
            evaluate(task, state, run, per_epoch, last)
        except Interrupted:
            save_checkpoint(task, state, trainer, run, plan)
            raise
    return state


def take_results(
    task: TrainingTask,
    state: TrainingState,
    unseen: Unseen,
    unreadable: UnreadableImages,
    progress: ProgressReporter,
    run: Run,
) -> bool:
    """Look at the unseen steps and report them; collective. Returns whether a process received a stop signal."""
    results = look(unseen, unreadable, task.training.images, run) if unseen.steps else []
    first = state.step - len(results) + 1
    for done, result in enumerate(results, start=first):
        state.loss = result.loss
        state.device_seconds += result.seconds * run.processes.world_size
        if state.flops is not None:
            state.flops = None if progress.flops is None else state.flops + progress.flops * progress.trainer.batch_size
        progress.step(done, result, state.device_seconds, state.flops)
    return any(result.stop for result in results)


def step_plan(task: TrainingTask, trainer: TrainerSettings, seed: int, processes: Processes) -> StepPlan:
    """Assignment of images to steps; raises UserError if the batch size does not fit the data or the processes."""
    size, rank, world_size = len(task.training.images), processes.rank, processes.world_size
    return StepPlan(size, trainer.batch_size, seed, rank, world_size, trainer.accumulate)


def length_of(task: TrainingTask, trainer: TrainerSettings, plan: StepPlan) -> Length:
    """Length of a training; raises UserError if it is too short. The model must be neither wrapped nor compiled yet."""
    return trainer.length(plan.steps_per_epoch, None if trainer.flops is None else task.step_flops())


def prepare(task: TrainingTask, trainer: TrainerSettings, run: Run, length: Length) -> TrainingState:
    """Prepare networks and optimizer on their device; restore the newest checkpoint if there is one."""
    device = run.processes.device
    if len(set(run.processes.gather(tuple(task.training.fingerprints.values())))) > 1:
        raise UserError("the processes have different images: give all nodes the same data (data.root)")
    task.model.to(device)
    if trainer.uses_tf32(device):
        log.info("float32: training computes matrix products in TensorFloat-32 (10 of 23 bits of the fraction), "
                 "evaluations in full precision")  # fmt: skip
    ema = ModelEmaV3(task.model, decay=trainer.ema_decay[0]) if trainer.ema else None
    if trainer.activation_checkpointing:
        checkpoint_activations(task.model)
    if trainer.compile:
        compile_blocks(task.main_network)
    strategy = strategy_of(trainer.strategy, run.processes, trainer.dtype(device))
    forward = strategy.distribute(task.model, None if ema is None else ema.module)
    scaler = torch.amp.GradScaler(device.type, enabled=trainer.dtype(device) == torch.float16)
    state = TrainingState(task.model, forward, ema, task.optimizer.build(task.model), scaler, strategy=strategy)
    saved, folder = restored(run)
    if saved is not None:
        store.check_parts(saved, f"the newest checkpoint in {folder.checkpoints}")
        if bad := non_finite(saved):
            raise NonFiniteError(
                f"the newest checkpoint in {folder.checkpoints} (step {saved['step']}) holds values that are not "
                f"finite ({listed(bad)}): move it away, and the run continues from the one before"
            )
        check_same_images(task.training, saved["data_position"], folder)
        state.load_state_dict(saved, run.processes)
        task.load_state_dict(saved["task"])
        report_restored(trainer, task.optimizer, length, state, run, folder)
    return state


def checkpoint_activations(model: nn.Module) -> None:
    """Let a model's backward pass compute the activations inside of its blocks again, so that they are not stored."""
    if not hasattr(model, "set_grad_checkpointing"):
        raise UserError(f"trainer.activation_checkpointing=true: {type(model).__name__} has no blocks to checkpoint "
                        f"(a method set_grad_checkpointing, as timm's models have): leave it false")  # fmt: skip
    model.set_grad_checkpointing(True)  # type: ignore[operator]


def restored(run: Run) -> tuple[store.Checkpoint | None, RunFolder]:
    """The state to go on from, and the run that saved it: this one, or the one that it extends."""
    saved = store.newest(run.folder.checkpoints)
    if saved is not None or run.extends is None:
        return saved, run.folder
    return store.newest(run.extends.checkpoints), run.extends


def check_same_images(training: TrainingData, position: dict[str, Any], folder: RunFolder) -> None:
    """Raise UserError if the images are not those of the checkpoint that a run continues, unless this is accepted.

    Args:
        training: the images.
        position: `data_position` of the checkpoint; before 0.2.0 it had no fingerprints.
        folder: the run.
    """
    before, now = position["data_set"], len(training.images)
    if before != now:
        change = f"was trained on {plural(before, 'image')}, these data (data.root) have {now}"
    else:
        differ = [name for name, print_ in training.fingerprints.items() if position.get(name, print_) != print_]
        if not differ:
            return
        use = f"trained on {plural(before, 'image')}" if "fingerprint" in differ else "measured on held-out images"
        change = f"was {use} of other names or classes than these data (data.root)"
    if not training.accept_changes:
        raise UserError(
            f"the run in {folder.path} {change}: restore the data, give the run on these another name with "
            f"run_name=..., or continue on these with data.accept_changes=true"
        )
    log.warning("data.accept_changes=true: this run %s", change)


def evaluate(task: TrainingTask, state: TrainingState, run: Run, per_epoch: int, last: int) -> None:
    """Evaluate at the start, after each epoch and at the end, if the task requires it; once per step."""
    if state.step % per_epoch and state.step != last:
        return
    previous = evaluations(run)
    if str(state.step) in previous:
        return
    first = run.extends is not None and not previous  # of a run that does not begin at step 0
    run.processes.share(buffers(task, state))
    found = task.evaluate(state, state.step // per_epoch, first or state.step == last, run)
    task.model.train()
    metrics = {name: value for name, value in found.items() if math.isfinite(value)}
    if undefined := sorted(found.keys() - metrics.keys()):
        log.warning("not finite after step %d, so not recorded: %s", state.step, ", ".join(undefined))
    run.log(state.step, metrics)
    if run.processes.is_main and metrics:
        write_json(run.folder.path / "evaluations.json", previous | {str(state.step): metrics})


def buffers(task: TrainingTask, state: TrainingState) -> list[Tensor]:
    """What the networks compute in a forward pass and store, such as the statistics of BatchNorm."""
    return [*task.model.buffers(), *(state.ema.module.buffers() if state.ema else ())]


def evaluations(run: Run) -> dict[str, dict[str, float]]:
    """Metrics of the evaluations so far, by step; collective."""
    return run.processes.broadcast(run.folder.evaluations())


def checkpoint_is_due(step: int, per_epoch: int, trainer: TrainerSettings) -> bool:
    """Whether a checkpoint is due after a step."""
    by_epoch = step % (per_epoch * trainer.save_every_epochs) == 0
    return by_epoch or (trainer.save_every_steps is not None and step % trainer.save_every_steps == 0)


def save_checkpoint(
    task: TrainingTask, state: TrainingState, trainer: TrainerSettings, run: Run, plan: StepPlan
) -> None:
    """Save a checkpoint and prune old ones; collective, the first process writes."""
    content = checkpoint_content(task, state, run, plan)
    if not run.processes.is_main:
        return
    run.folder.check_kept()
    store.save(run.folder.checkpoints, state.step, content)
    every = trainer.milestone_every_epochs
    store.prune(
        run.folder.checkpoints,
        trainer.keep_checkpoints,
        lambda step: every is not None and step % (plan.steps_per_epoch * every) == 0,
    )


def lost_at_once(run: Run, step: int) -> str:
    """What is lost if training ends now, after a step."""
    saved = store.list_steps(run.folder.checkpoints)
    last = saved[-1][0] if saved else 0
    since = f"since the checkpoint of step {last}" if saved else "so far, since there is no checkpoint yet,"
    return "no step is lost" if last == step else f"the steps {since} are lost"


def write_progress(run: Run, step: int, last: int, plan: StepPlan) -> None:
    """Write the progress of training to the run's status."""
    if run.processes.is_main:
        run.folder.set_status("running", step=step, last_step=last, batch_size=plan.batch_size)


def checkpoint_content(task: TrainingTask, state: TrainingState, run: Run, plan: StepPlan) -> dict[str, Any]:
    """Content of a checkpoint; collective.

    Raises:
        NonFiniteError: on all processes, if a value is not finite on one of them.
    """
    position = {"epochs": state.step / plan.steps_per_epoch, "images_seen": state.step * plan.batch_size}
    content = state.state_dict(run.processes) | {"task": task.state_dict()}
    if bad := [name for names in run.processes.gather(non_finite(content)) for name in names]:
        raise NonFiniteError(
            f"the state after step {state.step} is not finite ({listed(list(dict.fromkeys(bad)))}), so it is not "
            f"saved, and {last_good(run)}. Lower optimizer.base_lr (of an evaluator that learns: its base_lr) or set "
            f"trainer.precision=float32"
        )
    return content | {
        "config": run.config,
        "choices": run.choices,
        "overrides": list(run.overrides),
        "device": run.processes.device.type,
        "data_position": position | {"data_set": plan.dataset_size, **task.training.fingerprints},
    }
