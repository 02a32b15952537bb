"""Pretraining checkpoints of MAE in the layouts of its authors and of transformers, from a small model of transformers.

Its weights are renamed by hand to the names in the authors' files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from support.foreign_files import STEM
from support.foreign_layouts import EPS, joined, renamed, written

# The same sizes as options; both numbers of heads are the usual ones for the widths.
MODEL = ("model=mae_tiny", "model.embed_dim=64", "model.depth=3", "model.num_heads=1", "model.decoder_dim=32",
         "model.decoder_depth=2", "model.decoder_num_heads=2")  # fmt: skip
LAYOUTS = ("authors", "transformers", "older transformers")
# Names that transformers 5 writes, and those that transformers 4 wrote.
LAYER, OLDER_LAYER = "decoder.decoder_encoder.layer.", "decoder.decoder_layers."


def theirs(heads: int = 1, decoder_heads: int = 2) -> ViTMAEForPreTraining:
    """A small model, whose weights are all other than at initialisation, but for its positions."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=heads, intermediate_size=256, image_size=32,
        patch_size=4, decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=128, mask_ratio=0.75, norm_pix_loss=True, layer_norm_eps=EPS,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def authors_weights(model: ViTMAEForPreTraining) -> dict[str, Tensor]:
    """The weights by the names of the authors' code."""
    rules = [(r"^vit\.", ""), (r"^decoder\.", ""), (r"^decoder_encoder\.layer\.", "decoder_blocks.")]
    return renamed(joined(written(model), "qkv."), *rules, *STEM, (r"(blocks\.\d+\.)output\.dense", r"\1mlp.fc2"))


def checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the authors' code saves."""
    return {"model": weights, "optimizer": {}, "epoch": 799, "scaler": {}, "args": argparse.Namespace(blr=1.5e-4)}


def saved(model: ViTMAEForPreTraining, folder: Path, layout: str) -> Path:
    """Write a checkpoint; returns its path."""
    if layout == "authors":
        torch.save(checkpoint(authors_weights(model)), folder / "mae.pth")
        return folder / "mae.pth"
    model.save_pretrained(folder / "mae")
    if layout == "older transformers":
        file = folder / "mae" / "model.safetensors"
        save_file({name.replace(LAYER, OLDER_LAYER): value for name, value in load_file(file).items()}, file)
    return folder / "mae"
