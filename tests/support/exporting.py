"""Exported encoders, and helpers to compare them in other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints.pretrained import read_checkpoint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.cli import main

SMALL = ("tracking=none", "data.patch_size=8", "model.embed_dim=32", "model.num_heads=2", "trainer.batch_size=16")
TWO_STEPS = (*SMALL, "evaluators=[pictures]", "trainer.max_steps=2", "trainer.warmup_epochs=0")


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def photograph(width: int = 50, height: int = 41) -> Image.Image:
    """A smooth picture with a little noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width)[None, :, None] + rng.integers(0, 50, (height, width, 3))
    return Image.fromarray(ramp.astype(np.uint8))


def stored(path: Path, ema: bool = False) -> VisionTransformer:
    """The encoder or classifier of a checkpoint, loaded by semaim."""
    found = StoredEncoder(path, read_checkpoint(path), ema, None, None)
    return found.content.network(head=True).eval()


def exported(folder: Path, given: Path, *options: str) -> Path:
    """Export with the function of the command."""
    output = folder / "exported"
    assert main(["export", str(given), "--output", str(output), *options]) == 0
    return output


def by_timm(folder: Path) -> VisionTransformer:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
