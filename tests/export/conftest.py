"""Runs for export; no test changes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.exporting import SMALL, TWO_STEPS
from support.in_process import go


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a pretraining on non-square images, with a moving average."""
    average = ("trainer.ema=true", "trainer.ema_decay=[0.5,0.5]")
    sizes = ("data.image_size=[32,24]", "data.eval_transform.crop_ratio=0.8", "seed=3")
    return go(tmp_path_factory.mktemp("pretrained"), *TWO_STEPS, *average, *sizes, "run_name=begun")


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("square"), *TWO_STEPS, "run_name=square")


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, square: Path) -> dict[str, Path]:
    """Run folders of fine-tunings, by input of the head."""
    place = tmp_path_factory.mktemp("tuned")
    options = (*SMALL, "task=finetune", "trainer.max_steps=2", "trainer.warmup_epochs=0", f"checkpoint={square}")
    return {pool: go(place, *options, f"task.pool={pool}", f"run_name={pool}") for pool in ("cls", "mean")}
