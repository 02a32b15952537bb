"""Where weights come from: own checkpoint, then checkpoint=, then random weights of the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
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


def test_another_target_and_image_size_start_from_all_other_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = pretrain(tmp_path, "first", "trainer.max_steps=1")
    capfd.readouterr()
    still = (NEARLY_STILL, "optimizer.weight_decay=0.0", "trainer.max_steps=1")
    options = ("target=online", "data.image_size=48", "permutation=raster", f"checkpoint={tmp_path / 'first'}")
    second = pretrain(tmp_path, "second", *still, *options)
    said = capfd.readouterr().err
    new = {"prediction_head.fc2.weight", "prediction_head.fc2.bias", "pos_embed"}
    assert {name for name in first if first[name].shape != second[name].shape} == new
    assert equal({name: first[name] for name in first.keys() - new}, second)
    assert "the weights of step 1 are taken, the optimizer, the schedule and the step are not" in said
    assert "new, since the target is another one: prediction_head.fc2.bias, prediction_head.fc2.weight\n" in said
    assert "new, since the image size is another one: pos_embed\n" in said
