"""Weight formats of encoders in files: the wrappers around the weights, and a table with one layout per family.

The names of the weights determine the layout, their shapes the sizes. timm builds the model and, if it supports the
family, converts the weights to its own names.

Shapes: D width, L patches.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models import beit, vision_transformer
from torch import Tensor, nn

from semaim.checkpoints.huggingface import from_huggingface
from semaim.core.formatting import plural
from semaim.models.vit import PLAIN

log = logging.getLogger(__name__)
Weights = Mapping[str, Tensor]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each colour
IMAGENET: Normalisation = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
CLIP: Normalisation = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PATCHES, POSITIONS = "patch_embed.proj.weight", "pos_embed"  # timm's names
# Keys of the weights in a checkpoint; the first that is there is read. Self-distillation (DINO) evaluates the teacher.
WRAPPERS = ("teacher", "state_dict", "model", "student")
# Prefixes of wrapper modules: data parallel, compiled, with a head (transformers, DINO), timm's model in open_clip.
PREFIXES = re.compile(r"^((module|_orig_mod|vit|backbone|visual\.trunk)\.)+")
BACKBONES = ("backbone.", "visual.trunk.")  # what is beside them is left out, except a linear head by these names:
HEADS_BESIDE = {"head.weight": "head.weight", "head.bias": "head.bias", "visual.head.proj.weight": "head.weight"}
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
        infer: returns, from the weights and `positions`, the number L of patches and timm arguments besides the usual
            sizes.
        convert: converts the weights to timm's names, for a model.
        left_out: parts that no encoder needs, and patterns for the beginning of their names.
        head: name of a classifier's weights.
        projection: name of the weights that project tokens after the last norm, as CLIP's do; only teachers use them.
        normalisation: colour normalisation of its images; None if it varies within the family.
        ambiguity: warning about what the weights do not determine, and the remedy.
        patches, positions: names of the patch embedding and of the position embeddings.
        block: common prefix of all blocks.
        hidden: name of the first layer of an MLP within a block.
    """

    family: str
    marks: tuple[str, ...]
    architecture: str
    infer: Callable[[Weights, str], tuple[int, dict[str, Any]]]
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = vision_transformer.checkpoint_filter_fn
    left_out: Mapping[str, str] = field(default_factory=dict)
    head: str = "head.weight"
    projection: str = ""
    normalisation: Normalisation | None = None
    ambiguity: str = ""
    patches: str = PATCHES
    positions: str = POSITIONS
    block: str = "blocks."
    hidden: str = "mlp.fc1.weight"

    def select(self, weights: Weights, projection: bool) -> dict[str, Tensor]:
        """The weights of the encoder (and of its projection); logs the parts that are left out."""
        patterns = dict(self.left_out)
        if self.projection and not projection:
            patterns["projection"] = rf"{self.projection}$"
        parts = {name: next((p for p, pattern in patterns.items() if re.match(pattern, name)), "") for name in weights}
        if left_out := Counter(filter(None, parts.values())):
            log.info("left out: %s", ", ".join(f"{part} ({plural(n, 'weight')})" for part, n in left_out.items()))
        return {name: weights[name] for name in weights if not parts[name]}


def unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint of any project, without prefixes of wrapper modules.

    Of a model with a backbone, only the backbone and a linear head are kept.
    """
    state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), state)
    names = {name: PREFIXES.sub("", name, 1) for name, value in state.items() if isinstance(value, Tensor)}
    inside = {old for old, new in names.items() if any(each in old.removesuffix(new) for each in BACKBONES)}
    beside = {old for old, new in names.items() if inside and old not in inside and new not in HEADS_BESIDE}
    if beside:
        log.info("left out: parts beside the backbone (%s)", plural(len(beside), "weight"))
    weights = {HEADS_BESIDE.get(new, new): state[old] for old, new in names.items() if old not in beside}
    if "visual.head.proj.weight" in names.values():  # open_clip's has no bias, that of timm's model has one
        weights.setdefault("head.bias", torch.zeros(len(weights["head.weight"])))
    return weights


def infer_plain(weights: Weights, positions: str) -> tuple[int, dict[str, Any]]:
    """timm's VisionTransformer, which includes MAE, DINO and DeiT."""
    class_token, count = "cls_token" in weights, weights[positions].shape[-2]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    args = {key: value for name, part in OPTIONAL_PARTS.items() if name in weights for key, value in part.items()}
    args |= {"reg_tokens": registers} if registers else {}
    args |= {} if "blocks.0.attn.qkv.bias" in weights else {"qkv_bias": False}
    args |= {} if class_token else {"class_token": False}
    if math.isqrt(count) ** 2 == count:  # only patches have positions
        return count, args | ({"no_embed_class": True} if class_token or registers else {})
    return count - class_token - registers - ("dist_token" in weights), args


def infer_dinov2(weights: Weights, positions: str) -> tuple[int, dict[str, Any]]:
    """DINOv2, with or without registers."""
    patches, args = infer_plain(weights, positions)
    # timm adds the position of the class token to the token itself; registers have no position.
    if "register_tokens" in weights:
        args |= {"reg_tokens": weights["register_tokens"].shape[1], "no_embed_class": True}
    return patches, args


def from_dinov2(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm detects DINOv2 by its mask token, which it drops."""
    return vision_transformer.checkpoint_filter_fn(weights | {"mask_token": torch.empty(0)}, model)


def infer_beit(weights: Weights, positions: str) -> tuple[int, dict[str, Any]]:
    """BEiT: absolute or relative positions, per block or shared; the tables also determine the number of heads."""
    per_block, shared = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    args = {
        "use_abs_pos_emb": positions in weights,
        "use_rel_pos_bias": per_block in weights,
        "use_shared_rel_pos_bias": shared in weights,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else 0.0,
    }
    table = weights[per_block] if per_block in weights else weights.get(shared)
    if table is None:
        return weights[positions].shape[1] - 1, args
    side = (math.isqrt(table.shape[0] - 3) + 1) // 2  # (2 h - 1) (2 w - 1) offsets, plus three of the class token
    return side * side, args | {"num_heads": table.shape[1]}


def of_simmim(weights: Weights) -> dict[str, Tensor]:
    """SimMIM's encoder is BEiT's, with a prefix."""
    return {name.removeprefix("encoder."): value for name, value in weights.items()}


def infer_with_class_token(weights: Weights, positions: str) -> tuple[int, dict[str, Any]]:
    """CLIP's image tower, and the plain vision transformer of transformers: positions of class token and patches."""
    return weights[positions].shape[-2] - 1, {}


def from_clip_tower(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm expects the tower's names in the complete model."""
    return vision_transformer.checkpoint_filter_fn({f"visual.{n}": value for n, value in weights.items()}, model)


MASK = {"mask token": r"((embeddings|encoder)\.)?mask_token$"}
INDICES = {"indices": r".*\.relative_position_index$"}
PROJECTOR = {"projection heads": r"(dino_|ibot_)?head\.(?!(weight|bias)$)"}
GELU = (
    "CLIP's weights do not distinguish GELU from QuickGELU: assuming GELU, as in most models of open_clip. Those of "
    "OpenAI, DFN and MetaCLIP need task.source.architecture=vit_base_patch16_clip_quickgelu_224 (at any size); a "
    "teacher needs target.model=<timm's name>"
)
BEIT2 = (
    "BEiT's weights do not distinguish BEiT 1 (images with mean and deviation 0.5) from BEiT 2 (ImageNet's): assuming "
    "1; for 2 set task.source.architecture=beitv2_base_patch16_224 (at any size)"
)
# The first layout that matches is used.
OPEN_CLIP = Layout(
    "CLIP (open_clip)", ("visual.class_embedding",), "vit_base_patch16_clip_224", infer_with_class_token,
    left_out={"text tower": r"(?!visual\.)"}, head="", projection="visual.proj", normalisation=CLIP, ambiguity=GELU,
    patches="visual.conv1.weight", positions="visual.positional_embedding", block="visual.transformer.resblocks.",
    hidden="mlp.c_fc.weight",
)  # fmt: skip
LAYOUTS = (
    replace(OPEN_CLIP, family="CLIP (OpenAI)", marks=(*OPEN_CLIP.marks, "input_resolution"), ambiguity="",
            architecture="vit_base_patch16_clip_quickgelu_224"),
    OPEN_CLIP,
    Layout("CLIP's image tower", ("class_embedding",), "vit_base_patch16_clip_224", infer_with_class_token,
           from_clip_tower, head="", projection="proj", normalisation=CLIP, ambiguity=GELU, patches="conv1.weight",
           positions="positional_embedding", block="transformer.resblocks.", hidden="mlp.c_fc.weight"),
    Layout("CLIP (timm)", ("norm_pre.weight",), "vit_base_patch16_clip_224", infer_plain, normalisation=CLIP,
           ambiguity=GELU),
    Layout("BEiT", ("blocks.0.attn.q_bias",), "beit_base_patch16_224", infer_beit, beit.checkpoint_filter_fn,
           left_out=MASK | INDICES | {"prediction head": r"lm_head\."}, normalisation=HALF, ambiguity=BEIT2),
    Layout("SimMIM", ("encoder.blocks.0.attn.q_bias",), "beit_base_patch16_224",
           lambda weights, _: infer_beit(of_simmim(weights), POSITIONS),
           lambda weights, model: beit.checkpoint_filter_fn(of_simmim(weights), model),
           left_out=MASK | INDICES | {"prediction head": r"decoder\."}, normalisation=IMAGENET,
           patches=f"encoder.{PATCHES}", positions=f"encoder.{POSITIONS}", block="encoder.blocks."),
    Layout("MAE", ("decoder_pred.weight",), PLAIN, infer_plain, left_out=MASK | {"decoder": "decoder_"},
           normalisation=IMAGENET),
    Layout("DINOv2 with SwiGLU", ("mask_token", "blocks.0.mlp.w12.weight"), "vit_giant_patch14_dinov2", infer_dinov2,
           from_dinov2, left_out=MASK | PROJECTOR, normalisation=IMAGENET, hidden="mlp.w12.weight"),
    Layout("DINOv2", ("mask_token", "blocks.0.ls1.gamma"), "vit_base_patch14_dinov2", infer_dinov2, from_dinov2,
           left_out=MASK | PROJECTOR, normalisation=IMAGENET),
    Layout("ViT (transformers)", ("embeddings.position_embeddings", "encoder.layer.0.layernorm_before.weight"), PLAIN,
           infer_with_class_token, lambda weights, _: from_huggingface(weights), head="classifier.weight",
           left_out=MASK | {"decoder": r"decoder\.", "pooler": r"pooler\."},
           patches="embeddings.patch_embeddings.projection.weight", positions="embeddings.position_embeddings",
           block="encoder.layer.", hidden="intermediate.dense.weight"),
    Layout("DeiT (distilled)", ("dist_token",), "deit_base_distilled_patch16_224", infer_plain, normalisation=IMAGENET),
    Layout("ViT", ("blocks.0.attn.qkv.weight",), PLAIN, infer_plain,
           left_out=PROJECTOR | {"attention pooling": r"attn_pool\."}),
)  # fmt: skip
ANY = LAYOUTS[-1]  # of a model that timm names, timm's conversion may know the names of weights that no layout has


def layout_of(weights: Weights) -> Layout | None:
    """The layout of weights without prefixes of wrapper modules; None if no family has these names."""
    return next((each for each in LAYOUTS if weights.keys() >= {*each.marks, each.patches}), None)


# Other models that users may pass by mistake.
OTHERS = {
    "token_embedding.weight": "a text encoder",
    "layer1.0.conv1.weight": "a ResNet",
}


def other_model_kind(weights: Weights) -> str:
    """Describe weights of an unsupported kind of model; empty if the kind is unknown."""
    return next((f"looks like {kind}" for name, kind in OTHERS.items() if name in weights), "")
