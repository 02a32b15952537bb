"""The host's looks at the device: the results of the steps since the last one, and what the processes tell each other.

A GPU computes what the host has enqueued. If the host waited for every step, the GPU would have nothing to do until the
host had enqueued the next. So the results of a step stay on the GPU until the host looks at those of several steps. A
step whose loss or gradient is not finite sets a flag on the GPU, with which this step and all later ones leave the
weights as they are (semaim.training.update); the host finds it at its next look.

Shapes: B images of one micro-batch of this process.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from semaim.checkpoints import store
from semaim.core.files import write_json
from semaim.core.formatting import plural
from semaim.data.image_sets import ImageSet
from semaim.data.loading import UnreadableImages
from semaim.errors import NonFiniteError
from semaim.runs.context import Run
from semaim.training.settings import TrainerSettings

LONGEST_SECONDS = 1.0  # of the steps between two looks, since a signal waits for the next one


@dataclass
class StepResult:
    """Result of one step.

    Attributes:
        loss: mean over all images.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate.
        seconds: duration of the step, as the mean over the steps since the last look.
        data_wait: seconds in which the host waited for images, as the same mean.
        unreadable: unreadable images at the time of the look, summed over processes.
        stop: whether a process had received a stop signal then; for the newest step only.
    """

    loss: float
    grad_norm: float
    lr: float
    seconds: float
    data_wait: float
    unreadable: int
    stop: bool


class Step(NamedTuple):
    """A step as its device has it.

    Attributes:
        number: steps before it.
        values_3: loss, norm of the gradient, and whether it failed.
        images: for each micro-batch, indices (B,) of its images on the host and their losses (B,).
        lr: learning rate.
        data_wait: seconds in which the host waited for images.
    """

    number: int
    values_3: Tensor
    images: list[tuple[Tensor, Tensor]]
    lr: float
    data_wait: float


@dataclass
class Unseen:
    """The steps since the last look.

    Args:
        failed: bool, without dimensions, on the device: set from the first step on whose loss or gradient is not
            finite.
        longest: most steps between two looks.

    Attributes:
        steps: the steps.
        began: when the first of them began, by `time.perf_counter`.
        interval: steps after which the host looks again.
    """

    failed: Tensor
    longest: int
    steps: list[Step] = field(default_factory=list)
    began: float = 0.0
    interval: int = 1


def steps_between_looks(trainer: TrainerSettings, device: torch.device) -> int:
    """Most steps between two looks. A CPU has computed a step when the host goes on: there is nothing to wait for."""
    return 1 if device.type == "cpu" else trainer.log_every_steps


def look_is_due(unseen: Unseen, done: int, trainer: TrainerSettings) -> bool:
    """Whether the host looks after a step; the same on all processes."""
    return len(unseen.steps) >= unseen.interval or done % trainer.log_every_steps == 0


def look(unseen: Unseen, unreadable: UnreadableImages, images: ImageSet, run: Run) -> list[StepResult]:
    """Wait for the device and take the results of the unseen steps; collective.

    Raises:
        NonFiniteError: if one of the steps has failed. Its update and those of later steps were skipped.
    """
    steps, unseen.steps = unseen.steps, []
    results = torch.stack([step.values_3 for step in steps]).tolist()
    seconds = (time.perf_counter() - unseen.began) / len(steps)
    data_wait = sum(step.data_wait for step in steps) / len(steps)
    for step, (loss, norm, failed) in zip(steps, results, strict=True):
        if failed:
            raise non_finite_error(step, loss, norm, images, run)
    # All processes must look at the same steps. Sums of whole numbers are the same in every order.
    own = [run.stop.requested, len(unreadable.reasons), math.ceil(1000 * seconds)]
    totals = torch.tensor(own, dtype=torch.float64, device=unseen.failed.device)
    stop, num_unreadable, milliseconds = run.processes.sum(totals).tolist()
    fit = int(1000 * LONGEST_SECONDS * run.processes.world_size / milliseconds)
    unseen.interval = max(1, min(unseen.longest, fit))
    newest = steps[-1]
    return [
        StepResult(loss, norm, step.lr, seconds, data_wait, round(num_unreadable), stop > 0 and step is newest)
        for step, (loss, norm, _) in zip(steps, results, strict=True)
    ]


def non_finite_error(step: Step, loss: float, norm: float, image_set: ImageSet, run: Run) -> NonFiniteError:
    """Build the error for a step that is not finite, and write its images to a file in the run folder; collective."""
    local_images = [
        {"image": image_set.name(int(index)), "loss": float(value)}
        for index_B, loss_B in step.images
        for index, value in zip(index_B, loss_B.cpu(), strict=True)
    ]
    images = [image for process in run.processes.gather(local_images) for image in process]
    non_finite = [image["image"] for image in images if not math.isfinite(image["loss"])]
    file = run.folder.path / f"not_finite_step_{step.number:08d}.json"
    if run.processes.is_main:
        named = [each | {"loss": _in_json(each["loss"])} for each in images]
        content = {"loss": _in_json(loss), "grad_norm": _in_json(norm), "images": named}
        write_json(file, {"step": step.number, **content})
    what = (
        f"the loss of {plural(len(non_finite), 'image')} ({', '.join(map(repr, non_finite[:3]))})"
        if non_finite
        else "the gradient"
    )
    return NonFiniteError(
        f"{what} is not finite at step {step.number}; training stopped before the update, and {last_good(run)}. All "
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
