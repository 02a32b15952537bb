"""Settings of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from semaim.core.formatting import count, plural, scientific
from semaim.errors import UserError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Length:
    """Length of a training.

    Attributes:
        steps_per_epoch: optimizer steps.
        total: steps of the whole schedule.
        warmup: the first of these, in which the learning rate rises.
        last: the step after which training ends; below `total` with `trainer.max_steps`.
    """

    steps_per_epoch: int
    total: int
    warmup: int
    last: int

    @property
    def epochs(self) -> float:
        """Epochs of the whole schedule; not a whole number if operations determine the length."""
        return self.total / self.steps_per_epoch


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of the training loop.

    Args:
        epochs: passes over the training images; also the length of the schedule. None with `flops`.
        flops: floating-point operations to train for, passes of a teacher or for a map included; null for `epochs`.
        warmup_epochs: epochs of linear warm-up.
        batch_size: images per optimizer step, over all processes and micro-batches.
        accumulate: micro-batches per step; more micro-batches need less memory.
        clip_grad: maximum norm of the gradient; null for no clipping.
        precision: "auto" (bf16 if the device supports it, else float32), "bf16", "fp16" (with loss scaling) or
            "float32" (on a GPU, matrix products of training are in TensorFloat-32).
        strategy: how several processes share the model: "ddp" (a copy on each) or "fsdp" (on each a part of every
            weight).
        activation_checkpointing: compute activations inside of blocks again in the backward pass: less memory, about a
            third more time.
        compile: compile the transformer blocks with torch.compile.
        ema: keep a moving average of the weights.
        ema_decay: decay of the moving average at the start and at the end of its ramp.
        ema_ramp_epochs: length of the linear ramp in epochs.
        max_steps: stop after this number of steps, with the schedule of the full length; null for the full length.
        log_every_steps: steps between journal entries; in between, the host does not wait for a GPU.
        save_every_epochs: epochs between checkpoints.
        save_every_steps: steps between additional checkpoints; null for none.
        keep_checkpoints: number of newest checkpoints to keep.
        milestone_every_epochs: checkpoints of every such epoch are kept permanently; null for none.
        profile_steps: number of steps that torch.profiler records soon after the start; null for none.

    Raises:
        UserError: for invalid values.
    """

    epochs: int | None
    flops: float | None
    warmup_epochs: float
    batch_size: int
    accumulate: int
    clip_grad: float | None
    precision: Literal["auto", "bf16", "fp16", "float32"]
    strategy: Literal["ddp", "fsdp"]
    activation_checkpointing: bool
    compile: bool
    ema: bool
    ema_decay: tuple[float, float]
    ema_ramp_epochs: float
    max_steps: int | None
    log_every_steps: int
    save_every_epochs: int
    save_every_steps: int | None
    keep_checkpoints: int
    milestone_every_epochs: int | None
    profile_steps: int | None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.flops is None):
            raise UserError("the length of a training is trainer.epochs or trainer.flops: give one of them")
        if self.epochs is not None and (self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs):
            raise UserError(
                f"trainer.epochs={self.epochs} must be positive and trainer.warmup_epochs={self.warmup_epochs} between "
                f"0 and that"
            )

    def length(self, steps_per_epoch: int, image_flops: int | None) -> Length:
        """The length of a training.

        Args:
            steps_per_epoch: optimizer steps.
            image_flops: floating-point operations per image and step; None if they are unknown.

        Raises:
            UserError: if `flops` is less than a step costs, or than the warm-up.
        """
        total = self._steps_of_flops(image_flops) if self.epochs is None else self.epochs * steps_per_epoch
        length = Length(
            steps_per_epoch, total, round(self.warmup_epochs * steps_per_epoch), min(total, self.max_steps or total)
        )
        if length.warmup > total:
            raise UserError(
                f"{self.flops_option} is {plural(total, 'step')} ({length.epochs:.3g} epochs), less than the warm-up, "
                f"trainer.warmup_epochs={self.warmup_epochs:g}: give more, or lower trainer.warmup_epochs"
            )
        return length

    def _steps_of_flops(self, image_flops: int | None) -> int:
        """The steps that `flops` pays for, rounded down."""
        assert self.flops is not None
        if image_flops is None:
            raise UserError(f"{self.flops_option}: this task does not count its operations (step_flops), so give "
                            f"trainer.epochs and trainer.flops=null")  # fmt: skip
        step = image_flops * self.batch_size
        if self.flops < step:
            raise UserError(
                f"{self.flops_option} is less than the {count(step, 'FLOP')} of one step ({count(image_flops, 'FLOP')} "
                f"per image, trainer.batch_size={self.batch_size}): give at least trainer.flops={step}"
            )
        return int(self.flops) // step

    @property
    def twice(self) -> str:
        """The option of a training of twice this length."""
        if self.epochs is None:
            return f"trainer.flops={scientific(2 * (self.flops or 0.0))}"
        return f"trainer.epochs={2 * self.epochs}"

    @property
    def flops_option(self) -> str:
        """The option `flops`, as it is typed."""
        assert self.flops is not None
        return f"trainer.flops={scientific(self.flops)}"

    def dtype(self, device: torch.device) -> torch.dtype:
        """The precision of matrix products on a device."""
        if self.precision != "auto":
            return PRECISIONS[self.precision]
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float32

    def uses_tf32(self, device: torch.device) -> bool:
        """Whether training computes its float32 matrix products in TensorFloat-32, as GPUs do convolutions."""
        return device.type == "cuda" and self.dtype(device) == torch.float32

    @contextmanager
    def matrix_products(self, device: torch.device) -> Iterator[None]:
        """A block in which matrix products are those of training; evaluations have full float32."""
        if not self.uses_tf32(device):
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def ema_decay_at(self, epoch: float) -> float:
        """Decay of the moving average: linear between its two values over the ramp."""
        start, end = self.ema_decay
        return start + (end - start) * min(1.0, epoch / self.ema_ramp_epochs) if self.ema_ramp_epochs else end
