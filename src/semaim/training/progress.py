"""Progress of training: metrics for the journal, and a status line for the user."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from semaim.core.formatting import duration
from semaim.core.terminal import StatusLine
from semaim.data.loading import StepPlan
from semaim.runs.context import Run
from semaim.training.settings import TrainerSettings
from semaim.training.step import StepResult

log = logging.getLogger(__name__)


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
        if steps_here in (1, 10) and eta > 0:
            basis = "the first step" if steps_here == 1 else "the first steps"
            log.info("estimated from %s, the remaining %d steps take about %s", basis, self.last - done, duration(eta))
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
