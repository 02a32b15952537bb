"""The loss of fine-tuning with mixed images and labels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semaim.core.seeding import StepNoise
from semaim.errors import UserError
from semaim.lifecycle import session
from semaim.tasks.finetune import FineTuning
from support.in_process import go, logging_left_as_found
from support.tuning import TUNE, task


class Seen:
    """Stands in for a model: fixed logits; records its input images."""

    def __init__(self, images: int, classes: int = 10) -> None:
        self.logits_BC = torch.randn(images, classes, generator=torch.Generator().manual_seed(1))
        self.images_BCHW = torch.empty(0)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.images_BCHW = images_BCHW.clone()
        return self.logits_BC


def batch_of(count: int, first_row: int = 0) -> Any:
    generator = torch.Generator().manual_seed(2)
    images_BCHW = torch.randn(count, 3, 32, 32, generator=generator)
    return SimpleNamespace(images_BCHW=images_BCHW, labels_B=torch.arange(count) % 10, first_row=first_row)


def loss_of(tuning: FineTuning, batch: Any, noise: StepNoise) -> tuple[Tensor, Seen]:
    model = Seen(len(batch.labels_B))
    return tuning.loss(batch, model, noise), model  # type: ignore[arg-type]


def by_hand(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    return -(target_BC * (logits_BC - logits_BC.exp().sum(1, keepdim=True).log())).sum(1)


def smoothed(labels_B: Tensor, share: float) -> Tensor:
    """Smoothed labels: 1 - share on the label, and the share evenly on all ten classes."""
    return torch.eye(10)[labels_B] * (1 - share) + share / 10


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_loss_without_mixing_is_the_smoothed_cross_entropy(pretrained: Path, share: float) -> None:
    tuning = task(pretrained, "task.mixup=0.0", "task.cutmix=0.0", f"task.label_smoothing={share}")
    batch = batch_of(5)
    found_B, model = loss_of(tuning, batch, StepNoise(0, 0, 5))
    assert torch.allclose(found_B, by_hand(model.logits_BC, smoothed(batch.labels_B, share)), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.images_BCHW, batch.images_BCHW)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_mixup_mixes_labels_as_images(pretrained: Path, share: float) -> None:
    tuning = task(pretrained, "task.mixup=0.8", "task.cutmix=0.0", f"task.label_smoothing={share}")
    found = set()
    for step in range(5):
        batch = batch_of(6)
        x_BCHW, y_B = batch.images_BCHW.clone(), batch.labels_B
        loss_B, model = loss_of(tuning, batch, StepNoise(0, step, 6))
        difference = x_BCHW - x_BCHW.flip(0)
        part = ((model.images_BCHW - x_BCHW.flip(0)) * difference).sum() / difference.square().sum()
        assert torch.allclose(model.images_BCHW, part * x_BCHW + (1 - part) * x_BCHW.flip(0), atol=1e-5)
        target_BC = part * smoothed(y_B, share) + (1 - part) * smoothed(y_B.flip(0), share)
        assert torch.allclose(loss_B, by_hand(model.logits_BC, target_BC), rtol=1e-4, atol=1e-5)
        found.add(round(float(part), 6))
    assert len(found) == 5, "another share at every step"
    assert all(0 < part < 1 for part in found)


def test_cutmix_mixes_labels_by_the_area_of_the_patch(pretrained: Path) -> None:
    tuning = task(pretrained, "task.mixup=0.0", "task.cutmix=1.0", "task.label_smoothing=0.0")
    parts = []
    for step in range(8):
        batch = batch_of(6)
        x_BCHW, y_B = batch.images_BCHW.clone(), batch.labels_B
        loss_B, model = loss_of(tuning, batch, StepNoise(0, step, 6))
        own_BHW = (model.images_BCHW == x_BCHW).all(1)
        assert ((model.images_BCHW == x_BCHW.flip(0)).all(1) | own_BHW).all(), "every pixel is of one of the two"
        (part,) = set(own_BHW.float().mean((1, 2)).tolist())
        target_BC = part * torch.eye(10)[y_B] + (1 - part) * torch.eye(10)[y_B.flip(0)]
        assert torch.allclose(loss_B, by_hand(model.logits_BC, target_BC), rtol=1e-4, atol=1e-5)
        parts.append(part)
    assert len(set(parts)) > 5
    assert 0 < min(parts) < 0.9


def test_mixing_is_a_function_of_seed_step_and_position_in_the_batch(pretrained: Path) -> None:
    tuning = task(pretrained)  # both kinds of mixing, as in the recipe

    def mixed(seed: int, step: int, first_row: int = 0) -> tuple[list[float], bytes]:
        np.random.rand(3)  # independent of the random state
        loss_B, model = loss_of(tuning, batch_of(6, first_row), StepNoise(seed, step, 12))
        return loss_B.tolist(), model.images_BCHW.numpy().tobytes()

    before = np.random.get_state()[1].tobytes(), torch.get_rng_state()
    where = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (0, 0, 6)]
    first = [mixed(*each) for each in where]
    assert [mixed(*each) for each in where] == first
    assert len({images for _, images in first}) == 5
    np.random.seed(123)
    np.random.rand(3)
    expected = np.random.get_state()
    np.random.seed(123)
    mixed(0, 5)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before[1]), "the global generators are as before"


def test_odd_micro_batches_cannot_be_mixed(pretrained: Path, tmp_path: Path) -> None:
    options = (*TUNE, "run_name=odd", f"checkpoint={pretrained}", "trainer.max_steps=1")
    message = r"mixup and cutmix mix images in pairs, but trainer\.batch_size gives 15 at a time.*task\.mixup=0"
    for batch in (("trainer.batch_size=15",), ("trainer.batch_size=30", "trainer.accumulate=2")):
        for kind in ("task.mixup=0.0", "task.cutmix=0.0"):
            with pytest.raises(UserError, match=message):
                go(tmp_path, *options, *batch, kind)
    assert not (tmp_path / "odd").exists()
    without = task(pretrained, "task.mixup=0.0", "task.cutmix=0.0", "trainer.batch_size=15")
    with logging_left_as_found(), session("cpu") as (processes, _):
        without.check(0, processes)  # does not raise
