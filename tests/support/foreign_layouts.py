"""Checkpoints of other projects, and renaming of reference weights to their names.

The reference is transformers' implementation, which shares no code with timm. All parameters are random, including
biases, scales and norms.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TIMM_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
EPS = 1e-6
IMAGENET, CLIP, HALF = (0.485, 0.456, 0.406), (0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class File:
    """A checkpoint of another project.

    Attributes:
        content: content of its file.
        tokens: function from images to the tokens of the reference implementation.
        family: expected name of the family.
        left_out: expected unused parts, with their numbers of weights.
        mean: image normalisation, if known from the file.
        options: required options.
    """

    content: dict[str, Any]
    tokens: Callable[[Tensor], Tensor]
    family: str
    left_out: dict[str, int] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    options: tuple[str, ...] = ()


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter random and set eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model.eval()


def written(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a transformers model, with the names used in its files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def renamed(weights: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """Rename weights; each rule is a pattern and its replacement."""
    found = {}
    for name, value in weights.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


def joined(weights: dict[str, Tensor], qkv: str) -> dict[str, Tensor]:
    """Join `<block>.query.weight`, `key` and `value` into one `<block>.<qkv>weight`; the same for biases."""
    found = dict(weights)
    for name in weights:
        if match := re.fullmatch(r"(.*)\.query\.(weight|bias)", name):
            parts = [f"{match[1]}.{part}.{match[2]}" for part in ("query", "key", "value")]
            if all(part in found for part in parts):
                found[f"{match[1]}.{qkv}{match[2]}"] = torch.cat([found.pop(part) for part in parts])
    return found


def zeros(*names: str) -> dict[str, Tensor]:
    """Zero weights that must not be read."""
    return {name: torch.zeros(2, 2) for name in names}


def saved(file: File, folder: Path) -> Path:
    torch.save(file.content, folder / "weights.pth")
    return folder / "weights.pth"
