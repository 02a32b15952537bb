"""Six steps on several processes, compared with those of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from support.commands import SMALL, losses

SIX_STEPS = (*SMALL, "trainer.max_steps=6", "trainer.save_every_steps=3", "run_name=six")


def checkpoint(home: Path, step: int = 6) -> dict[str, Any]:
    """The checkpoint of the run in a folder."""
    return torch.load(home / "runs" / "six" / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)


def assert_close(home: Path, alone: Path, parts: Sequence[str] = ("model",)) -> None:
    """Losses and weights of the run are those of a run of one process, up to rounding.

    Args:
        home: folder of the run.
        alone: folder of the run of one process.
        parts: of the checkpoint that are compared.
    """
    expected, found = losses(alone / "runs" / "six"), losses(home / "runs" / "six")
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-6), step
    ours, theirs = checkpoint(home), checkpoint(alone)
    for part in parts:
        for name, value in theirs[part].items():
            torch.testing.assert_close(ours[part][name], value, rtol=0, atol=2e-5, msg=name)
