"""What training says of itself after each step: to the journal, and to the person at the keyboard."""

from __future__ import annotations

import logging

from semaim.core.formatting import duration
from semaim.core.terminal import StatusLine
from semaim.data.loading import StepPlan
from semaim.runs.context import Run
from semaim.training.settings import TrainerSettings
from semaim.training.step import StepResult

log = logging.getLogger(__name__)


class ProgressReporter:
    """Tells the journal and the person at the keyboard how training goes."""

    def __init__(self, trainer: TrainerSettings, plan: StepPlan, run: Run, first: int, last: int) -> None:
        self.trainer = trainer
        self.plan = plan
        self.run = run
        self.first = first
        self.last = last
        self.line = StatusLine(run.processes.is_main and not run.quiet, every=trainer.log_every_steps)
        self.mean_seconds = 0.0

    def step(self, done: int, step: StepResult, device_seconds: float) -> None:
        """After a step: `done` steps are behind us, which took so many seconds over all processes."""
        here = done - self.first
        # The first step is slow for reasons that do not come again; then a moving average.
        keep = 0.0 if here <= 2 else 0.95
        self.mean_seconds = keep * self.mean_seconds + (1 - keep) * step.seconds
        left = (self.last - done) * self.mean_seconds
        rate = self.trainer.batch_size / self.mean_seconds
        waiting = step.waited / step.seconds
        if here in (1, 10) and left > 0 and not self.run.quiet:
            when = "its first step" if here == 1 else "its first steps"
            log.info("judging by %s, the remaining %d steps take about %s", when, self.last - done, duration(left))
        epoch = done / self.plan.steps_per_epoch
        text = (
            f"epoch {epoch:.2f}/{self.trainer.epochs}  step {done}/{self.last}  loss {step.loss:.4f}  "
            f"lr {step.lr:.2e}  grad norm {step.grad_norm:.2f}  "
            f"{rate:.3g} images/s  data wait {waiting:.0%}  ETA {duration(left)}"
        )
        self.line.update(text, last=done == self.last or step.stop)
        if done % self.trainer.log_every_steps == 0 or done == self.last:
            self.run.log(done, self.metrics(epoch, step, rate, waiting) | {"train/device_hours": device_seconds / 3600})

    def metrics(self, epoch: float, step: StepResult, rate: float, waiting: float) -> dict[str, float]:
        """What goes to the journal."""
        return {
            "train/loss": step.loss,
            "train/lr": step.lr,
            "train/grad_norm": step.grad_norm,
            "train/epoch": epoch,
            "train/images_per_second": rate,
            "data/wait": waiting,
            "data/unreadable_images": step.unreadable,
        }
