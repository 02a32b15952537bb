"""Fixtures that several test files use: small seeded models and images. Golden files lie in tests/golden/*.npz."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semaim.data.sources import FileImages
from semaim.models.aim import AIM

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # tensors here are small: threads only cost, and pytest-xdist brings its own processes


@pytest.fixture
def tiny_model() -> Callable[..., AIM]:
    """Factory of small models: `tiny_model(depth=2, seed=1)`; any argument of AIM can be given."""

    def make(seed: int = 0, **overrides: Any) -> AIM:
        sizes = {"out_channels": 48, "image_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AIM(**{**sizes, "query_depth": 2, **overrides})
            with torch.no_grad():  # zero biases and unit scales would hide a bias or a scale applied wrongly
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Factory of normally distributed images (batch, 3, height, width), the same at every call."""

    def make(batch: int = 2, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def damaged(tmp_path: Path) -> FileImages:
    """Six images, of which 2 and 5 cannot be read."""
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_text("no image")
    return FileImages(tmp_path, [f"{i}.png" for i in range(6)], list(range(6)))
