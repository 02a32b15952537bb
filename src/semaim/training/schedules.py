"""Schedules of the learning rate after the warm-up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """How the learning rate falls from its peak to `min_lr`."""

    def __call__(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """What is left, at a step after the warm-up, of the difference between peak and `min_lr`; 1 at the peak.

        Args:
            step: from 0.
            warmup_steps: of these.
            total_steps: of the training.
        """
        ...


@dataclass(frozen=True)
class Cosine:
    """Half a cosine, from the end of the warm-up to the end of the training."""

    def __call__(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """See `Schedule`."""
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class MultiStep:
    """A constant that falls at milestones. SimMIM (arXiv 2111.09886) has one.

    Args:
        milestones: shares of the training, warm-up included, ascending; each is rounded to a step.
        gamma: factor at a milestone.
    """

    milestones: Sequence[float]
    gamma: float

    def __call__(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """See `Schedule`."""
        return self.gamma ** bisect_right([round(each * total_steps) for each in self.milestones], step)
