"""Images of a run whose host looks at every fifth step only. On the second of two processes something happens.

With BAD as the share of held-out images, an image of step 2 has a loss of NaN there; else it gets a SIGTERM in step 1.
"""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import torch

from semaim.data.image_sets import Splits
from semaim.tasks.pretrain import Pretraining
from semaim.training import look, loop
from support.paced import squares

BAD = 0.3


def images(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """As `paced.squares`."""
    loss = Pretraining.loss

    def disturbed(self: Pretraining, batch: Any, state: Any, noise: Any) -> torch.Tensor:
        factor_B = torch.ones(len(batch.index_B))
        if os.environ["RANK"] == "1" and val_fraction == BAD and state.step == 2:
            factor_B[3] = math.nan
        if os.environ["RANK"] == "1" and val_fraction != BAD and state.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return loss(self, batch, state, noise) * factor_B

    Pretraining.loss = disturbed  # type: ignore[method-assign]
    loop.steps_between_looks = lambda *_: 5
    look.LONGEST_SECONDS = 1e9
    return squares(side, val_fraction)
