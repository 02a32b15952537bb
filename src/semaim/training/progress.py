"""Progress of training: metrics for the journal, and a status line for the user."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from semaim.checkpoints.store import list_steps
from semaim.core.formatting import duration, plural, relative_to_cwd
from semaim.core.terminal import StatusLine
from semaim.data.loading import StepPlan
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.training.look import StepResult
from semaim.training.optimizers import Optimization, last_lr
from semaim.training.settings import TrainerSettings
from semaim.training.state import TrainingState

log = logging.getLogger(__name__)
WORTH_SAYING = 0.1  # share of the images of an epoch that are not used
SLOW_STEP_SECONDS = 10.0  # after a step as slow as this, one is enough for an estimate


@dataclass
class ProgressReporter:
    """Writes training metrics to the journal and a status line to the terminal.

    Args:
        trainer: settings of the loop.
        plan: assignment of images to steps.
        run: context of the run.
        first: step at which this start began.
        last: step at which training ends.
    """

    trainer: TrainerSettings
    plan: StepPlan
    run: Run
    first: int
    last: int
    mean_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.line = StatusLine(self.run.processes.is_main, every=self.trainer.log_every_steps)

    def step(self, done: int, step: StepResult, device_seconds: float) -> None:
        """Report a step.

        Args:
            done: completed steps.
            step: result of the step.
            device_seconds: time of all steps, summed over processes.
        """
        steps_here = done - self.first
        # The first step is slower because of one-time costs; after it, a moving average.
        keep = 0.0 if steps_here <= 2 else 0.95
        self.mean_seconds = keep * self.mean_seconds + (1 - keep) * step.seconds
        eta = (self.last - done) * self.mean_seconds
        rate = self.trainer.batch_size / self.mean_seconds
        wait_share = step.data_wait / step.seconds
        if steps_here == (1 if step.seconds > SLOW_STEP_SECONDS else 10) and eta > 0:
            left = plural(self.last - done, "step")
            log.info("about %s left, at the speed of the first %s: %s", duration(eta), plural(steps_here, "step"), left)
        epoch = done / self.plan.steps_per_epoch
        text = (
            f"epoch {epoch:.2f}/{self.trainer.epochs}  step {done}/{self.last}  loss {step.loss:.4f}  "
            f"lr {step.lr:.2e}  grad norm {step.grad_norm:.2f}  "
            f"{rate:.3g} images/s  data wait {wait_share:.0%}  ETA {duration(eta)}"
        )
        self.line.update(text, last=done == self.last or step.stop)
        if done % self.trainer.log_every_steps == 0 or done == self.last:
            metrics = {
                "train/loss": step.loss,
                "train/lr": step.lr,
                "train/grad_norm": step.grad_norm,
                "train/epoch": epoch,
                "train/images_per_second": rate,
                "data/wait": wait_share,
                "data/unreadable_images": step.unreadable,
                "train/device_hours": device_seconds / 3600,
            }
            self.run.log(done, metrics)


def report_unused(plan: StepPlan) -> None:
    """Say how many images of each epoch are not used, if they are many, and which batch size would use them."""
    unused, unit = plan.dataset_size % plan.batch_size, plan.world_size * plan.accumulate
    if unused < WORTH_SAYING * plan.dataset_size:
        return
    smaller = range(plan.batch_size - plan.batch_size % unit, plan.batch_size // 2, -unit)
    best = min(smaller, key=lambda size: plan.dataset_size % size)
    log.warning(
        "%s of %d are not used in each epoch (others each time), since steps have trainer.batch_size=%d: %s per epoch. "
        "trainer.batch_size=%d would leave out %d",
        plural(unused, "image"), plan.dataset_size, plan.batch_size, plural(plan.steps_per_epoch, "step"),
        best, plan.dataset_size % best,
    )  # fmt: skip


def report_restored(
    trainer: TrainerSettings,
    optimization: Optimization,
    plan: StepPlan,
    state: TrainingState,
    run: Run,
    folder: RunFolder,
) -> None:
    """Log where training goes on, what is left, and what was spent before.

    Args:
        trainer, optimization, plan: of the run.
        state: as it was restored.
        run: the run.
        folder: of the run that saved the state: this one, or the one that it extends.
    """
    total, last = trainer.epochs * plan.steps_per_epoch, trainer.last_step(plan.steps_per_epoch)
    left, spent = last - state.step, state.device_seconds
    seconds = spent / max(1, state.step) * left / run.processes.world_size
    log.info(
        f"continuing after step {state.step} of {last}: {plural(left, 'step')} left"
        + (f", about {duration(seconds)}" if left else "")
        + f"; {spent / 3600:.3g} device hours spent before"
    )
    if folder is run.folder:
        return
    warmup_steps = round(trainer.warmup_epochs * plan.steps_per_epoch)
    log.info(
        f"extends {relative_to_cwd(folder.path)}, which stays as it is: its weights, moving average, optimizer and "
        f"random states; its device hours are counted here, too"
    )
    log.info(
        f"the learning rate goes from {last_lr(state.optimizer):.3g} to "
        f"{optimization.lr(state.step, trainer.batch_size, warmup_steps, total):.3g}: from here on it follows the "
        f"schedule of {plural(trainer.epochs, 'epoch')}; a run of that length from the start would differ"
    )


def steps_done(run: Run) -> int:
    """Steps that were done before this start, also by the run that it extends; from the names of the checkpoints."""
    folders = [run.folder] if run.extends is None else [run.folder, run.extends]
    return next((steps[-1][0] for folder in folders if (steps := list_steps(folder.checkpoints))), 0)
