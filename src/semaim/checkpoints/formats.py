"""Weight formats of other projects' encoders: a table with one layout per family.

The names of the weights determine the layout, their shapes the sizes. timm builds the model and, if it supports the
family, converts the weights to its own names.

Shapes: D width, L patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models import beit, vision_transformer
from torch import Tensor, nn

from semaim.checkpoints.huggingface import from_huggingface
from semaim.models.vit import PLAIN

Weights = Mapping[str, Tensor]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each colour
IMAGENET: Normalisation = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
CLIP: Normalisation = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Weights of optional parts of vision transformers, and the timm arguments that enable these parts.
OPTIONAL_PARTS: dict[str, dict[str, Any]] = {
    "blocks.0.ls1.gamma": {"init_values": 1e-5},
    "blocks.0.attn.q_norm.weight": {"qk_norm": True},
    "norm_pre.weight": {"pre_norm": True},
}


@dataclass(frozen=True)
class Layout:
    """Weight format of a family of encoders.

    Attributes:
        family: name of the family.
        marks: weights that distinguish it from the families below it.
        architecture: timm model with the same architecture; the sizes of the weights replace its own.
        infer: returns, from the weights, the number L of patches and timm arguments besides the usual sizes.
        convert: converts the weights to timm's names, for a model.
        left_out: parts that evaluations do not need, and patterns for the beginning of their names.
        head: name of a classifier's weights.
        normalisation: colour normalisation of its images; None if it varies within the family.
        ambiguity: warning about what the weights do not determine, and the remedy.
        patches: name of the patch embedding.
        block: common prefix of all blocks.
        hidden: name of the first layer of an MLP within a block.
    """

    family: str
    marks: tuple[str, ...]
    architecture: str
    infer: Callable[[Weights], tuple[int, dict[str, Any]]]
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = vision_transformer.checkpoint_filter_fn
    left_out: Mapping[str, str] = field(default_factory=dict)
    head: str = "head.weight"
    normalisation: Normalisation | None = None
    ambiguity: str = ""
    patches: str = "patch_embed.proj.weight"
    block: str = "blocks."
    hidden: str = "mlp.fc1.weight"


def infer_plain(weights: Weights) -> tuple[int, dict[str, Any]]:
    """timm's VisionTransformer, which includes MAE, DINO and DeiT."""
    class_token, positions = "cls_token" in weights, weights["pos_embed"].shape[-2]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    args = {key: value for name, part in OPTIONAL_PARTS.items() if name in weights for key, value in part.items()}
    args |= {"reg_tokens": registers} if registers else {}
    args |= {} if "blocks.0.attn.qkv.bias" in weights else {"qkv_bias": False}
    args |= {} if class_token else {"class_token": False}
    if math.isqrt(positions) ** 2 == positions:  # only patches have positions
        return positions, args | ({"no_embed_class": True} if class_token or registers else {})
    return positions - class_token - registers, args


def infer_dinov2(weights: Weights) -> tuple[int, dict[str, Any]]:
    """DINOv2, with or without registers."""
    patches, args = infer_plain(weights)
    if (
        "register_tokens" in weights
    ):  # timm adds the position of the class token to the token itself; registers have no position
        args |= {"reg_tokens": weights["register_tokens"].shape[1], "no_embed_class": True}
    return patches, args


def from_dinov2(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm detects DINOv2 by its mask token, which it drops."""
    return vision_transformer.checkpoint_filter_fn(weights | {"mask_token": torch.empty(0)}, model)


def infer_beit(weights: Weights) -> tuple[int, dict[str, Any]]:
    """BEiT: absolute or relative positions, per block or shared; the tables also determine the number of heads."""
    per_block, shared = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    args = {
        "use_abs_pos_emb": "pos_embed" in weights,
        "use_rel_pos_bias": per_block in weights,
        "use_shared_rel_pos_bias": shared in weights,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else 0.0,
    }
    table = weights[per_block] if per_block in weights else weights.get(shared)
    if table is None:
        return weights["pos_embed"].shape[1] - 1, args
    side = (math.isqrt(table.shape[0] - 3) + 1) // 2  # (2 h - 1) (2 w - 1) offsets, plus three of the class token
    return side * side, args | {"num_heads": table.shape[1]}


def infer_clip(weights: Weights) -> tuple[int, dict[str, Any]]:
    """CLIP's image tower in a complete model."""
    return weights["visual.positional_embedding"].shape[0] - 1, {}


def infer_clip_tower(weights: Weights) -> tuple[int, dict[str, Any]]:
    """CLIP's image tower alone."""
    return weights["positional_embedding"].shape[0] - 1, {}


def from_clip_tower(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm expects the tower's names in the complete model."""
    return vision_transformer.checkpoint_filter_fn({f"visual.{n}": value for n, value in weights.items()}, model)


def infer_huggingface(weights: Weights) -> tuple[int, dict[str, Any]]:
    """The plain vision transformer of transformers."""
    return weights["embeddings.position_embeddings"].shape[1] - 1, {}


MASK = {"mask token": r"(embeddings\.)?mask_token$"}
PROJECTOR = {"projection heads": r"(dino_|ibot_)?head\.(?!(weight|bias)$)"}
GELU = (
    "CLIP's weights do not distinguish GELU from QuickGELU: assuming GELU, as in most models of open_clip. Those of "
    "OpenAI, DFN and MetaCLIP need task.source.architecture=vit_base_patch16_clip_quickgelu_224 (at any size)"
)
BEIT2 = (
    "BEiT's weights do not distinguish BEiT 1 (images with mean and deviation 0.5) from BEiT 2 (ImageNet's): assuming "
    "1; for 2 set task.source.architecture=beitv2_base_patch16_224 (at any size)"
)
# The first layout that matches is used.
LAYOUTS = (
    Layout("CLIP (OpenAI)", ("visual.class_embedding", "input_resolution"), "vit_base_patch16_clip_quickgelu_224",
           infer_clip, left_out={"projection": r"visual\.proj$", "text tower": r"(?!visual\.)"}, head="",
           normalisation=CLIP, patches="visual.conv1.weight", block="visual.transformer.resblocks.",
           hidden="mlp.c_fc.weight"),
    Layout("CLIP (open_clip)", ("visual.class_embedding",), "vit_base_patch16_clip_224", infer_clip,
           left_out={"projection": r"visual\.proj$", "text tower": r"(?!visual\.)"}, head="", normalisation=CLIP,
           ambiguity=GELU, patches="visual.conv1.weight", block="visual.transformer.resblocks.",
           hidden="mlp.c_fc.weight"),
    Layout("CLIP's image tower", ("class_embedding",), "vit_base_patch16_clip_224", infer_clip_tower,
           from_clip_tower, left_out={"projection": r"proj$"}, head="", normalisation=CLIP, ambiguity=GELU,
           patches="conv1.weight", block="transformer.resblocks.", hidden="mlp.c_fc.weight"),
    Layout("CLIP (timm)", ("norm_pre.weight",), "vit_base_patch16_clip_224", infer_plain, normalisation=CLIP,
           ambiguity=GELU),
    Layout("BEiT", ("blocks.0.attn.q_bias",), "beit_base_patch16_224", infer_beit, beit.checkpoint_filter_fn,
           left_out=MASK | {"prediction head": r"lm_head\.", "indices": r".*\.relative_position_index$"},
           normalisation=HALF, ambiguity=BEIT2),
    Layout("MAE", ("decoder_pred.weight",), PLAIN, infer_plain, left_out=MASK | {"decoder": "decoder_"},
           normalisation=IMAGENET),
    Layout("DINOv2 with SwiGLU", ("mask_token", "blocks.0.mlp.w12.weight"), "vit_giant_patch14_dinov2", infer_dinov2,
           from_dinov2, left_out=MASK | PROJECTOR, normalisation=IMAGENET, hidden="mlp.w12.weight"),
    Layout("DINOv2", ("mask_token", "blocks.0.ls1.gamma"), "vit_base_patch14_dinov2", infer_dinov2, from_dinov2,
           left_out=MASK | PROJECTOR, normalisation=IMAGENET),
    Layout("ViT (transformers)", ("embeddings.position_embeddings", "encoder.layer.0.layernorm_before.weight"), PLAIN,
           infer_huggingface, lambda weights, _: from_huggingface(weights), head="classifier.weight",
           left_out=MASK | {"decoder": r"decoder\.", "pooler": r"pooler\."},
           patches="embeddings.patch_embeddings.projection.weight", block="encoder.layer.",
           hidden="intermediate.dense.weight"),
    Layout("ViT", ("blocks.0.attn.qkv.weight",), PLAIN, infer_plain,
           left_out=PROJECTOR | {"attention pooling": r"attn_pool\."}),
)  # fmt: skip
# Other models that users may pass by mistake.
OTHERS = {
    "token_embedding.weight": "a text encoder",
    "layer1.0.conv1.weight": "a ResNet",
}


def other_model_kind(weights: Weights) -> str:
    """Describe weights of an unsupported kind of model; empty if the kind is unknown."""
    return next((f"looks like {kind}" for name, kind in OTHERS.items() if name in weights), "")
