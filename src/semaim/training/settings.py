"""Settings of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from semaim.errors import UserError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of the training loop.

    Args:
        epochs: passes over the training images; also the length of the schedule.
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

    epochs: int
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
        if self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(
                f"trainer.epochs={self.epochs} must be positive and trainer.warmup_epochs={self.warmup_epochs} between "
                f"0 and that"
            )

    def last_step(self, steps_per_epoch: int) -> int:
        """The step after which training ends."""
        total = self.epochs * steps_per_epoch
        return min(total, self.max_steps or total)

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
