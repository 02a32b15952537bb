"""How the weights of other projects' encoders are written: a table with a row for each family.

The names of a file's weights tell which row it belongs to, their shapes its sizes. timm builds the model and, where it
knows the family, gives the weights its own names.

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
# Weights of parts that only some vision transformers have, and what makes timm build these parts.
PARTS: dict[str, dict[str, Any]] = {
    "blocks.0.ls1.gamma": {"init_values": 1e-5},
    "blocks.0.attn.q_norm.weight": {"qk_norm": True},
    "norm_pre.weight": {"pre_norm": True},
}


@dataclass(frozen=True)
class Layout:
    """How a family of encoders is written.

    Attributes:
        family: its name.
        marks: weights that tell it from the families below it.
        architecture: a model of timm's that has the same parts; its sizes are replaced by those of the weights.
        tokens: of the weights, the number L of patches, and arguments for timm besides the usual sizes.
        convert: gives the weights timm's names, for a model.
        left_out: parts that no evaluation needs, and a pattern of the beginning of their names.
        head: name of a classifier's weights.
        normalisation: that of its images; None where files of the family differ.
        doubt: what the weights do not tell, and what to do about it.
        patches, block, hidden: names of the patch embedding, of what all blocks begin with, of an MLP's first layer.
    """

    family: str
    marks: tuple[str, ...]
    architecture: str
    tokens: Callable[[Weights], tuple[int, dict[str, Any]]]
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = vision_transformer.checkpoint_filter_fn
    left_out: Mapping[str, str] = field(default_factory=dict)
    head: str = "head.weight"
    normalisation: Normalisation | None = None
    doubt: str = ""
    patches: str = "patch_embed.proj.weight"
    block: str = "blocks."
    hidden: str = "mlp.fc1.weight"


def of_plain(weights: Weights) -> tuple[int, dict[str, Any]]:
    """timm's VisionTransformer, which MAE, DINO and DeiT also are."""
    class_token, positions = "cls_token" in weights, weights["pos_embed"].shape[-2]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    args = {key: value for name, part in PARTS.items() if name in weights for key, value in part.items()}
    args |= {"reg_tokens": registers} if registers else {}
    args |= {} if "blocks.0.attn.qkv.bias" in weights else {"qkv_bias": False}
    args |= {} if class_token else {"class_token": False}
    if math.isqrt(positions) ** 2 == positions:  # patches alone have positions
        return positions, args | ({"no_embed_class": True} if class_token or registers else {})
    return positions - class_token - registers, args


def of_dinov2(weights: Weights) -> tuple[int, dict[str, Any]]:
    """DINOv2, with registers or without."""
    patches, args = of_plain(weights)
    if "register_tokens" in weights:  # timm adds the class token's position to it; registers have none
        args |= {"reg_tokens": weights["register_tokens"].shape[1], "no_embed_class": True}
    return patches, args


def from_dinov2(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm knows DINOv2 by the mask token, which it drops."""
    return vision_transformer.checkpoint_filter_fn(weights | {"mask_token": torch.empty(0)}, model)


def of_beit(weights: Weights) -> tuple[int, dict[str, Any]]:
    """BEiT: absolute positions, or relative ones, of each block or of all; the tables also tell the heads."""
    each, shared = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    args = {
        "use_abs_pos_emb": "pos_embed" in weights,
        "use_rel_pos_bias": each in weights,
        "use_shared_rel_pos_bias": shared in weights,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else 0.0,
    }
    table = weights[each] if each in weights else weights.get(shared)
    if table is None:
        return weights["pos_embed"].shape[1] - 1, args
    side = (math.isqrt(table.shape[0] - 3) + 1) // 2  # (2 h - 1) (2 w - 1) distances, and three of the class token
    return side * side, args | {"num_heads": table.shape[1]}


def of_clip(weights: Weights) -> tuple[int, dict[str, Any]]:
    """CLIP's image tower among the rest."""
    return weights["visual.positional_embedding"].shape[0] - 1, {}


def of_clip_tower(weights: Weights) -> tuple[int, dict[str, Any]]:
    """CLIP's image tower by itself."""
    return weights["positional_embedding"].shape[0] - 1, {}


def from_clip_tower(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm expects the names that the tower has in the whole."""
    return vision_transformer.checkpoint_filter_fn({f"visual.{n}": value for n, value in weights.items()}, model)


def of_huggingface(weights: Weights) -> tuple[int, dict[str, Any]]:
    """The plain vision transformer of transformers."""
    return weights["embeddings.position_embeddings"].shape[1] - 1, {}


MASK = {"mask token": r"(embeddings\.)?mask_token$"}
PROJECTOR = {"projection heads": r"(dino_|ibot_)?head\.(?!(weight|bias)$)"}
GELU = (
    "CLIP's weights do not tell GELU from QuickGELU: taking GELU, as most models of open_clip have it. Those of "
    "OpenAI, DFN and MetaCLIP need task.source.architecture=vit_base_patch16_clip_quickgelu_224 (at any size)"
)
BEIT2 = (
    "BEiT's weights do not tell BEiT 1, whose images have mean and deviation 0.5, from BEiT 2 with ImageNet's: taking "
    "1; for 2 say task.source.architecture=beitv2_base_patch16_224 (at any size)"
)
# Told apart from top to bottom.
LAYOUTS = (
    Layout("CLIP (OpenAI)", ("visual.class_embedding", "input_resolution"), "vit_base_patch16_clip_quickgelu_224",
           of_clip, left_out={"projection": r"visual\.proj$", "text tower": r"(?!visual\.)"}, head="",
           normalisation=CLIP, patches="visual.conv1.weight", block="visual.transformer.resblocks.",
           hidden="mlp.c_fc.weight"),
    Layout("CLIP (open_clip)", ("visual.class_embedding",), "vit_base_patch16_clip_224", of_clip,
           left_out={"projection": r"visual\.proj$", "text tower": r"(?!visual\.)"}, head="", normalisation=CLIP,
           doubt=GELU, patches="visual.conv1.weight", block="visual.transformer.resblocks.", hidden="mlp.c_fc.weight"),
    Layout("CLIP's image tower", ("class_embedding",), "vit_base_patch16_clip_224", of_clip_tower, from_clip_tower,
           left_out={"projection": r"proj$"}, head="", normalisation=CLIP, doubt=GELU, patches="conv1.weight",
           block="transformer.resblocks.", hidden="mlp.c_fc.weight"),
    Layout("CLIP (timm)", ("norm_pre.weight",), "vit_base_patch16_clip_224", of_plain, normalisation=CLIP, doubt=GELU),
    Layout("BEiT", ("blocks.0.attn.q_bias",), "beit_base_patch16_224", of_beit, beit.checkpoint_filter_fn,
           left_out=MASK | {"prediction head": r"lm_head\.", "indices": r".*\.relative_position_index$"},
           normalisation=HALF, doubt=BEIT2),
    Layout("MAE", ("decoder_pred.weight",), PLAIN, of_plain, left_out=MASK | {"decoder": "decoder_"},
           normalisation=IMAGENET),
    Layout("DINOv2 with SwiGLU", ("mask_token", "blocks.0.mlp.w12.weight"), "vit_giant_patch14_dinov2", of_dinov2,
           from_dinov2, left_out=MASK | PROJECTOR, normalisation=IMAGENET, hidden="mlp.w12.weight"),
    Layout("DINOv2", ("mask_token", "blocks.0.ls1.gamma"), "vit_base_patch14_dinov2", of_dinov2, from_dinov2,
           left_out=MASK | PROJECTOR, normalisation=IMAGENET),
    Layout("ViT (transformers)", ("embeddings.position_embeddings", "encoder.layer.0.layernorm_before.weight"), PLAIN,
           of_huggingface, lambda weights, _: from_huggingface(weights), head="classifier.weight",
           left_out=MASK | {"decoder": r"decoder\.", "pooler": r"pooler\."},
           patches="embeddings.patch_embeddings.projection.weight", block="encoder.layer.",
           hidden="intermediate.dense.weight"),
    Layout("ViT", ("blocks.0.attn.qkv.weight",), PLAIN, of_plain,
           left_out=PROJECTOR | {"attention pooling": r"attn_pool\."}),
)  # fmt: skip
# What else files hold that people take for an encoder.
OTHERS = {
    "token_embedding.weight": "a text encoder",
    "layer1.0.conv1.weight": "a ResNet",
}


def what_else(weights: Weights) -> str:
    """What weights seem to be that are of no family here; empty if they tell nothing."""
    return next((f"looks like {what}" for name, what in OTHERS.items() if name in weights), "")
