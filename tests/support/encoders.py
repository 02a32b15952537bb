"""Encoders from command lines, for a model of 16 patches, and weight files for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from hydra.utils import instantiate
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints.encoder_source import EncoderSource
from support.in_process import composed

# A model of 16 patches, for encoders without pretraining.
MODEL = ("tracking=none", "data.patch_size=8", "model.embed_dim=32", "model.num_heads=2")
SMALLER = ("data.patch_size=8", "trainer.max_steps=2")
KNN = (*MODEL, "task=knn", "task.features_dir=null", "task.ks=[10]")
SMALL_RUN = (*MODEL, "evaluators=[pictures]", "trainer.max_steps=1", "trainer.batch_size=16")


def source(given: Path | str | None, *overrides: str) -> EncoderSource:
    """Encoder source from command-line overrides."""
    checkpoint = "null" if given is None else f"'{given}'"
    cfg = composed(*MODEL, "task=knn", f"checkpoint={checkpoint}", "run_name=x", *overrides)
    return instantiate(cfg.task.source, _convert_="all")


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("*.pt"))[-1]


def weights(folder: Path, part: str = "model") -> dict[str, Tensor]:
    return torch.load(newest(folder), weights_only=True)[part]


def assert_weights(encoder: VisionTransformer, expected: dict[str, Tensor]) -> None:
    """Weights are bit-identical, and the encoder is in eval mode."""
    assert not any(module.training for module in encoder.modules())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, expected[name]), name


def timm_folder(folder: Path, name: str = "vit_tiny_patch16_224", **sizes: Any) -> tuple[str, torch.nn.Module]:
    """Save a timm model by timm's own export into a folder; return its checkpoint name and the model."""
    torch.manual_seed(3)
    model = timm.create_model(name, **sizes)
    timm.models.save_for_hf(model, folder, safe_serialization=False)
    return f"timm:local-dir:{folder}", model


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
