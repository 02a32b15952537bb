"""Where weights come from: own checkpoint, then checkpoint=, then random weights of the seed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from support.commands import SMALL
from support.encoders import weights
from support.in_process import go

NEARLY_STILL = "optimizer.base_lr=1e-30"  # one step leaves the initial weights as they are


def pretrain(folder: Path, name: str, *options: str) -> dict[str, Tensor]:
    """Weights after a run."""
    return weights(go(folder, *SMALL, f"run_name={name}", "trainer.warmup_epochs=0", *options))


def equal(these: dict[str, Tensor], those: dict[str, Tensor]) -> bool:
    return all(torch.allclose(value, those[name], rtol=0, atol=1e-20) for name, value in these.items())


def test_checkpoint_comes_before_random_weights(tmp_path: Path) -> None:
    zero, again, one = (
        pretrain(tmp_path, name, f"seed={seed}", "trainer.max_steps=1", NEARLY_STILL, "optimizer.weight_decay=0.0")
        for name, seed in (("zero", 0), ("again", 0), ("one", 1))
    )
    assert equal(zero, again)
    assert not equal(zero, one)
    options = (f"checkpoint={tmp_path / 'one'}", "trainer.max_steps=1", NEARLY_STILL, "optimizer.weight_decay=0.0")
    assert equal(pretrain(tmp_path, "started", *options), one)


def test_an_own_checkpoint_comes_before_checkpoint(tmp_path: Path) -> None:
    pretrain(tmp_path, "first", "seed=1", "trainer.max_steps=1")
    start = f"checkpoint={tmp_path / 'first'}"
    straight = pretrain(tmp_path, "straight", start, "trainer.max_steps=2")
    stopped = pretrain(tmp_path, "stopped", start, "trainer.max_steps=1")
    pretrain(tmp_path, "first", "seed=1", "trainer.max_steps=3")  # the checkpoint that it started from changes
    continued = pretrain(tmp_path, "stopped", start, "trainer.max_steps=2")
    assert not equal(stopped, continued)
    assert equal(continued, straight)
