"""Progress of training: metrics for the journal, and a status line for the user."""

from __future__ import annotations

import logging

import torch

from semaim.checkpoints.store import list_steps
from semaim.core.formatting import count, duration, plural, relative_to_cwd, spent_of
from semaim.core.terminal import StatusLine
from semaim.data.loading import StepPlan, TrainingData
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.training.look import StepResult
from semaim.training.memory import peak_memory
from semaim.training.optimizers import Optimization, last_lr
from semaim.training.pace import Pace, WaitAdvice
from semaim.training.peak import Peak, forget, training_peak
from semaim.training.settings import Length, TrainerSettings
from semaim.training.state import TrainingState

log = logging.getLogger(__name__)
WORTH_SAYING = 0.1  # share of the images of an epoch that are not used
TOO_FAST = 1.1  # a speed by which training shows that the measured peak was too low, as a share of it
SLOW_STEP_SECONDS = 10.0  # after a step as slow as this, one is enough for an estimate


class ProgressReporter:
    """Writes training metrics to the journal and a status line to the terminal.

    The speed is that of the steps since the last journal entry, without evaluations and checkpoints, and without the
    first step of this start, which has one-time costs.

    Args:
        training: the images.
        flops: floating-point operations of a step per image; None if they are unknown.
        trainer: settings of the loop.
        length: of the training.
        run: context of the run.
        first: step at which this start began.
    """

    def __init__(
        self,
        training: TrainingData,
        flops: int | None,
        trainer: TrainerSettings,
        length: Length,
        run: Run,
        first: int,
    ) -> None:
        self.trainer, self.length, self.run, self.first, self.last = trainer, length, run, first, length.last
        self.line = StatusLine(run.processes.is_main, every=trainer.log_every_steps)
        self.now = Pace()  # since the last journal entry
        self.entry = Pace()  # of that entry
        self.wait = WaitAdvice(training, run.processes)
        self.device = run.processes.device
        self.hours = "GPU-hours" if self.device.type == "cuda" else "device-hours"
        self.done, self.calls = first, 0
        self.flops = flops if first < self.last else None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.peak: Peak | None = None
        if self.flops is not None:
            self.peak = training_peak(trainer, self.device)
            log.info("MFU is the share of the peak of matrix products: %s (%s)", self.peak, self.peak.kept)
            run.tag({"peak": str(self.peak)})

    def step(self, done: int, step: StepResult, device_seconds: float, flops: int | None) -> None:
        """Report the steps since the last call.

        Args:
            done: completed steps.
            step: result of the last step; its durations are those of all steps since the last call.
            device_seconds: time of all steps, summed over processes.
            flops: operations of all steps, on all processes; None if they are unknown.
        """
        self.calls += 1
        if self.calls == 2:
            self.now = Pace()  # without the first step, unless it has an entry of its own
        self.now += Pace(done - self.done, step.seconds, step.data_wait)
        self.done = done
        logged = done % self.trainer.log_every_steps == 0 or done == self.last
        pace = self.now if logged or not self.entry.steps else self.entry
        if done == self.last:  # a few steps after the last entry would be a poor measure
            pace = self.now + self.entry
        self._say_time_left(done - self.first, step.seconds, pace)
        cost = self._cost(pace, device_seconds)
        epoch = done / self.length.steps_per_epoch
        self.line.update(self._text(epoch, step, pace, cost), last=done == self.last or step.stop)
        if not logged:
            return
        metrics = {
            "train/loss": step.loss,
            "train/lr": step.lr,
            "train/grad_norm": step.grad_norm,
            "train/epoch": epoch,
            "train/images_per_second": self.trainer.batch_size / pace.per_step,
            "data/wait": pace.wait_share,
            "data/unreadable_images": step.unreadable,
            **cost,
        }
        if flops is not None:
            metrics["train/total_flops"] = float(flops)
        self.run.log(done, metrics)
        if self.entry.steps:  # the first entry contains the start of the loading processes
            self.wait.add(self.now, done == self.last)
        self.entry, self.now = self.now, Pace()

    def _cost(self, pace: Pace, device_seconds: float) -> dict[str, float]:
        """Metrics of what the steps cost: of a device, but for the hours, which are of all."""
        devices = self.run.processes.world_size
        left = (self.last - self.done) * pace.per_step * devices
        found = {
            "train/device_hours": device_seconds / 3600,
            "train/device_hours_projected": (device_seconds + left) / 3600,
            "train/peak_memory_gib": peak_memory(self.device) / 2**30,
        }
        if self.flops is not None:
            speed = self.flops * self.trainer.batch_size / pace.per_step / devices
            found["train/tflops"] = speed / 1e12
            if self.peak is not None and speed > TOO_FAST * self.peak.flops:
                self._drop_peak(self.peak, speed)
            elif self.peak is not None:
                found["train/mfu"] = speed / self.peak.flops
        return found

    def _drop_peak(self, peak: Peak, speed: float) -> None:
        """Go on without a peak that training has exceeded."""
        self.peak = None
        log.warning(
            "training reaches %s, more than the peak of matrix products (%s), whose measurement must have been "
            "disturbed: this run goes on without MFU, and the next start measures the peak again",
            count(speed, "FLOP/s"), peak,
        )  # fmt: skip
        self.run.tag({"peak": f"unknown; more than {peak}"})
        if self.run.processes.is_main:
            forget(peak)

    def _text(self, epoch: float, step: StepResult, pace: Pace, cost: dict[str, float]) -> str:
        """The status line."""
        rate, left = self.trainer.batch_size / pace.per_step, (self.last - self.done) * pace.per_step
        speed = [f"MFU {cost['train/mfu']:.0%}"] if "train/mfu" in cost else []
        if "train/tflops" in cost:
            speed.append(count(cost["train/tflops"] * 1e12, "FLOP/s"))
        parts = [
            f"epoch {epoch:.2f}/{round(self.length.epochs, 2):g}",
            f"step {self.done}/{self.last}",
            f"loss {step.loss:.4f}",
            f"lr {step.lr:.2e}",
            f"grad norm {step.grad_norm:.2f}",
            f"{rate:.3g} images/s",
            f"data wait {pace.wait_share:.0%}",
            f"ETA {duration(left)}",
            *speed,
            f"{cost['train/peak_memory_gib']:.3g} GiB",
            f"{spent_of(cost['train/device_hours'], cost['train/device_hours_projected'])} {self.hours}",
        ]
        return "  ".join(parts)

    def _say_time_left(self, steps: int, seconds: float, pace: Pace) -> None:
        """Say once, after some steps of this start, how long the rest takes."""
        left = self.last - self.done
        if steps == (1 if seconds > SLOW_STEP_SECONDS else 10) and left:
            log.info(
                "about %s left, at the speed of the first %s: %s",
                duration(left * pace.per_step), plural(steps, "step"), plural(left, "step"),
            )  # fmt: skip


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
    length: Length,
    state: TrainingState,
    run: Run,
    folder: RunFolder,
) -> None:
    """Log where training goes on, what is left, and what was spent before.

    Args:
        trainer, optimization, length: of the run.
        state: as it was restored.
        run: the run.
        folder: of the run that saved the state: this one, or the one that it extends.
    """
    last = length.last
    left, spent = last - state.step, state.device_seconds
    seconds = spent / max(1, state.step) * left / run.processes.world_size
    log.info(
        f"continuing after step {state.step} of {last}: {plural(left, 'step')} left"
        + (f", about {duration(seconds)}" if left else "")
        + f"; {spent / 3600:.3g} device hours spent before"
    )
    if folder is run.folder:
        return
    lr = optimization.lr(state.step, trainer.batch_size, length.warmup, length.total)
    log.info(
        f"extends {relative_to_cwd(folder.path)}, which stays as it is: its weights, moving average, optimizer and "
        f"random states; its device hours are counted here, too"
    )
    log.info(
        f"the learning rate goes from {last_lr(state.optimizer):.3g} to {lr:.3g}: from here on it follows the "
        f"schedule of {round(length.epochs, 2):g} epochs; a run of that length from the start would differ"
    )


def steps_done(run: Run) -> int:
    """Steps that were done before this start, also by the run that it extends; from the names of the checkpoints."""
    folders = [run.folder] if run.extends is None else [run.folder, run.extends]
    return next((steps[-1][0] for folder in folders if (steps := list_steps(folder.checkpoints))), 0)
