"""The contract of tasks: what a run does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from semaim.config.follow_ups import short_recipe
from semaim.config.messages import chain
from semaim.config.naming import key_of
from semaim.config.run_spec import RunSpec
from semaim.core.distributed import Processes
from semaim.data.image_sets import ImageSet
from semaim.errors import BatchTooLarge, NeedsOptions, UserError
from semaim.models.flops import Cost
from semaim.runs.context import Run
from semaim.tracking.datasets import Context
from semaim.training import loop
from semaim.training.memory import FLOAT32, moments, training_memory
from semaim.training.settings import PRECISIONS, TrainerSettings
from semaim.training.step import TrainingTask


@dataclass(frozen=True)
class RunCost:
    """Cost of a run; None for unknown values.

    Attributes:
        encoder_parameters, parameters: of the encoder, and of the whole network.
        flops: floating-point operations per image: of a training step, or of a forward pass if the encoder is frozen.
        images: number of images processed, in all, without those of evaluations during training.
        steps: of training, in all.
        memory: bytes on each process during training.
        checkpoints: bytes on disk at the end.
    """

    encoder_parameters: int
    parameters: int
    flops: int
    images: int
    steps: int | None = None
    memory: int | None = None
    checkpoints: int = 0


class Task:
    """What a run does. A subclass is built from `conf/task/<name>.yaml` and implements `run`.

    Every process of a run calls `check`, `load` and `run`, in this order. `semaim check` calls `check` and `cost`, with
    the networks on the meta device: they have shapes but no values.

    Attributes:
        metric: name of the main result, which Hydra's sweepers receive (see `semaim.core.headline` for comparisons).
        highlights: metrics and artifacts to look at in MLflow, with a description of each.
        spec: the configuration of the run, set before `check`; for a task that needs to know what the user typed.
    """

    metric: str
    spec: RunSpec
    highlights: Mapping[str, str] = {}

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError if settings, data and processes do not fit together. Writes nothing and keeps no weights."""

    def load(self, processes: Processes) -> None:
        """Load weights besides those of the model or encoder, such as a teacher's, before the run folder is opened.

        Raises:
            UserError: if they are unavailable or do not fit.
        """

    def run(self, run: Run) -> dict[str, float]:
        """Do the work; returns the results by name, one of them `metric`.

        Raises:
            Interrupted: after a signal; the same command continues.
        """
        raise NotImplementedError

    def image_sets(self) -> dict[Context, tuple[ImageSet, int]]:
        """The images that the run uses, and the number of their classes, by what it does with them."""
        return {}

    def product(self) -> dict[str, str]:
        """Sizes of the model that the run makes, for MLflow; empty if it makes none."""
        return {}

    def cost(self, processes: int, on_gpu: bool) -> RunCost | None:
        """The estimated cost; None if it is unknown.

        Args:
            processes: number of processes.
            on_gpu: whether they run on GPUs, where trainer.precision=auto means bf16.

        Raises:
            UserError: if batch, data and processes do not fit together, or for invalid options of the optimizer.
        """
        return None

    def next_commands(self, folder: Path, spec: RunSpec) -> dict[str, str]:
        """Commands that the user may run next, by purpose.

        Args:
            folder: the run folder.
            spec: the configuration of the run.
        """
        return {}


@contextmanager
def complete_command(spec: RunSpec) -> Iterator[None]:
    """Say which command works, if this one works with further options."""
    try:
        yield
    except Exception as error:
        if (needs := next((each for each in chain(error) if isinstance(each, NeedsOptions)), None)) is None:
            raise
        typed = {key_of(each) for each in spec.overrides}
        added: Sequence[str] = needs.options
        if isinstance(needs, BatchTooLarge) and "trainer.batch_size" not in typed:
            added = short_recipe(spec, spec.choices["task"], needs.images) or added
        replaced = {key_of(option) for option in added}
        kept = [each for each in spec.overrides if key_of(each) not in replaced]
        raise UserError(f"{needs.problem}:\n  {spec.command_with(*kept, *added)}") from None


def training_cost(
    task: TrainingTask, trainer: TrainerSettings, spent: Cost, flops: int, processes: int, on_gpu: bool, frozen: int = 0
) -> RunCost:
    """Cost of a run of the training loop.

    Args:
        task: what is trained.
        trainer: settings of the loop.
        spent: cost of the network.
        flops: floating-point operations per image and step.
        processes: number of processes.
        on_gpu: see `Task.cost`.
        frozen: parameters of networks besides the trained one.
    """
    plan = loop.step_plan(task, trainer, 0, Processes(0, processes, torch.device("cpu")))
    steps, moment_count = loop.length_of(task, trainer, plan).last, moments(task.optimizer, task.model)
    itemsize = PRECISIONS.get(trainer.precision, torch.bfloat16 if on_gpu else torch.float32).itemsize
    memory = training_memory(
        task.model,
        plan.micro_batch_size,
        itemsize,
        moment_count,
        trainer.ema,
        processes if trainer.strategy == "fsdp" else 1,
        trainer.accumulate > 1,
        trainer.activation_checkpointing,
    )
    if memory is not None:
        memory += FLOAT32 * frozen
    files = trainer.keep_checkpoints + 1  # the new one is written before the oldest is deleted
    if trainer.milestone_every_epochs is not None:
        files += steps // (plan.steps_per_epoch * trainer.milestone_every_epochs)
    size = sum(p.numel() for p in task.model.parameters()) * FLOAT32 * (1 + moment_count + trainer.ema)
    images, checkpoints = steps * trainer.batch_size, size * min(files, steps)
    return RunCost(spent.encoder_parameters, spent.parameters, flops, images, steps, memory, checkpoints)
