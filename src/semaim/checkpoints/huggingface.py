"""The plain vision transformer in the format of Hugging Face's transformers: weight names and configuration.

Its attention has separate projections for queries, keys and values; timm's has a joint one (qkv).

Shapes: D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from semaim.models.layers import LAYER_NORM_EPS

# Name prefixes: timm's, and those of transformers' ViTModel in files (transformers renames its modules on loading).
STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
BLOCK = {
    "norm1.": "layernorm_before.",
    "attn.proj.": "attention.output.dense.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
QKV = "attn.qkv."
PROJECTIONS = tuple(f"attention.attention.{name}." for name in ("query", "key", "value"))
TRUNK, HEAD = "vit.", "classifier."  # prefixes in the model with a classifier


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    return next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), None)


def to_huggingface(weights: Mapping[str, Tensor], classifier: bool) -> dict[str, Tensor]:
    """Convert weights from timm's names to those of `ViTModel`, or of `ViTForImageClassification`.

    Raises:
        ValueError: for a weight that these models do not have.
    """
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        trunk = TRUNK if classifier else ""
        if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            prefix, rest = f"{trunk}encoder.layer.{block[1]}.", block[2]
            if rest.startswith(QKV):
                parts = value.chunk(3)
                converted |= {prefix + p + rest.removeprefix(QKV): x for p, x in zip(PROJECTIONS, parts, strict=True)}
                continue
            new = _renamed(rest, BLOCK)
        elif classifier and name.startswith("head."):
            prefix, new = "", HEAD + name.removeprefix("head.")
        else:
            prefix, new = trunk, _renamed(name, STEM)
        if new is None:
            raise ValueError(f"transformers' ViT has no weight {name}")
        converted[prefix + new] = value
    return converted


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_huggingface`, for names without the trunk's prefix; other names are unchanged."""
    stem = {new: old for old, new in STEM.items()}
    converted: dict[str, Tensor] = {}
    for name, value in _with_joint_attention(weights, r"encoder\.layer", "blocks").items():
        if name.startswith(HEAD):
            converted["head." + name.removeprefix(HEAD)] = value
        else:
            converted[_renamed(name, stem) or name] = value
    return converted


def from_huggingface_mae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of `ViTMAEForPreTraining`, without the trunk's prefix, to those of MAE's code; else a copy."""
    if "decoder.decoder_pred.weight" not in weights:
        return dict(weights)
    weights = {name.removeprefix("decoder."): value for name, value in from_huggingface(weights).items()}
    # "decoder_encoder.layer" is what transformers 5 makes of its own decoder_layers on saving.
    return _with_joint_attention(weights, r"decoder_layers|decoder_encoder\.layer", "decoder_blocks")


def _with_joint_attention(weights: Mapping[str, Tensor], layers: str, blocks: str) -> dict[str, Tensor]:
    """Convert the weights of layers, whose name a pattern matches, to timm's blocks; other names are unchanged."""
    names = {new: old for old, new in BLOCK.items()}
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        if (block := re.fullmatch(rf"(?:{layers})\.(\d+)\.(.+)", name)) is None:
            converted[name] = value
            continue
        prefix, rest = f"{blocks}.{block[1]}.", block[2]
        if rest.startswith(PROJECTIONS[0]):
            parameter, layer = rest.removeprefix(PROJECTIONS[0]), name.removesuffix(rest)
            converted[prefix + QKV + parameter] = torch.cat([weights[layer + p + parameter] for p in PROJECTIONS])
        elif not rest.startswith(PROJECTIONS):
            converted[prefix + (_renamed(rest, names) or rest)] = value
    return converted


def model_config(sizes: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Content of `config.json`.

    Args:
        sizes: sizes of `semaim.models.vit.build_vit`.
        classes: names of the classes; empty for a model without a classifier.
    """
    config = {
        "architectures": ["ViTForImageClassification" if classes else "ViTModel"],
        "model_type": "vit",
        "image_size": list(sizes["image_size"]),
        "patch_size": sizes["patch_size"],
        "num_channels": 3,
        "hidden_size": sizes["embed_dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": int(sizes["embed_dim"] * sizes["mlp_ratio"]),
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": LAYER_NORM_EPS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if classes:
        config["id2label"] = {str(index): name for index, name in enumerate(classes)}
        config["label2id"] = {name: index for index, name in enumerate(classes)}
    return config


def preprocessor_config(
    image_size: tuple[int, int], shorter_side: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Content of `preprocessor_config.json`: resize the shorter side (bicubic), centre crop, normalise."""
    return {
        "image_processor_type": "BitImageProcessor",  # as for DINOv2 and BiT; ViT's own has no centre crop
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shorter_side},
        "resample": 3,  # PIL's constant for bicubic
        "do_center_crop": True,
        "crop_size": {"height": image_size[0], "width": image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
