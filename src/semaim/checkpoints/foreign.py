"""Encoders of other projects, from their files or from folders in timm's format.

`given` is the option that named the weights, with its value, for messages: `checkpoint=weights.pth`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semaim.checkpoints.encoder_weights import EncoderWeights
from semaim.checkpoints.formats import ANY, Layout, Weights, layout_of, other_model_kind
from semaim.checkpoints.official import default_num_heads
from semaim.checkpoints.pretrained import check_weights
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.models.vit import HEADS, Pool, build_vit, from_timm

log = logging.getLogger(__name__)
USAGE_ARGS = ("num_classes", "global_pool", "drop_path_rate")  # timm arguments that `build_vit` sets itself


def recognise(
    weights: Weights, given: str, num_heads: int | None, architecture: str | None, projection: bool
) -> EncoderWeights:
    """The encoder of a known family; log which weights are loaded and left out.

    Args:
        weights: weights by the names of their project, without prefixes of wrapper modules.
        given: option and value that named the weights.
        num_heads: attention heads, if not the default for the width.
        architecture: timm model with the same architecture, if not the default of the family.
        projection: keep CLIP's projection as the head.

    Raises:
        UserError: if the family is unknown, or weights of the encoder are missing.
    """
    layout = layout_of(weights)
    if layout is None:
        kind = other_model_kind(weights)
        names = ", ".join(sorted(weights)[:3]) + ", ..." if weights else "no weights"
        raise UserError(
            f"{given} holds no supported vision transformer{kind and f' (it {kind})'}: {names} "
            f"docs/moving-weights.md lists the known families; for other models of timm use "
            f"{given.split('=')[0]}=timm:<name>"
        )
    if layout.ambiguity and architecture is None:
        log.warning("%s: %s", given, layout.ambiguity)
    kept = layout.select(weights, projection)
    sizes = _sizes(layout, kept, given, num_heads, architecture)
    encoder = _build(layout, kept, sizes, given)
    if architecture is not None and (cfg := timm.get_pretrained_cfg(architecture)) is not None:
        return replace(encoder, normalisation=(tuple(cfg.mean), tuple(cfg.std)))
    return encoder


def converted(weights: Weights, network: VisionTransformer) -> dict[str, Tensor]:
    """The weights of a file by timm's names, for a given model of timm; they may not fit it.

    Args:
        weights: weights by the names of their project, without prefixes of wrapper modules.
        network: the model, possibly without weights. Its head receives a classifier or CLIP's projection.
    """
    layout = layout_of(weights) or ANY
    has_head = isinstance(network.head, nn.Linear)
    kept = layout.select(weights, projection=has_head)
    try:
        found = layout.convert(dict(kept), network)
    except Exception:  # timm raises various exceptions for weights of other models
        found = dict(kept)
    for ours, theirs in ((ANY.patches, layout.patches), (ANY.positions, layout.positions)):
        if ours in found and theirs in kept and found[ours].numel() != kept[theirs].numel():
            found[ours] = kept[theirs]  # timm has silently resampled it to the size of the model
    return {name: value for name, value in found.items() if has_head or not name.startswith(HEADS)}


def from_timm_config(config: Mapping[str, Any], weights: Weights, given: str) -> EncoderWeights:
    """The encoder in a folder with timm's config.json.

    Args:
        config: content of config.json.
        weights: weights by timm's names.
        given: option and value that named the folder.

    Raises:
        UserError: if the model is not a vision transformer, or its weights do not fit it.
    """
    cfg = config.get("pretrained_cfg", config)
    args = {key: value for key, value in config.get("model_args", {}).items() if key not in USAGE_ARGS}
    if cfg.get("fixed_input_size") and cfg.get("input_size"):
        args.setdefault("img_size", cfg["input_size"][-2:])
    if "cls_token" not in weights and "fc_norm.weight" not in weights:
        args["fc_norm"] = False
    weights = {name: value for name, value in weights.items() if not name.startswith("attn_pool.")}
    normalisation = (tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= cfg.keys() else None
    name = str(config["architecture"])
    layout = replace(ANY, family=f"timm's {name}", convert=lambda found, _: found, normalisation=normalisation)
    return _build(layout, weights, from_timm(name, args), given)


def _sizes(
    layout: Layout, weights: Weights, given: str, num_heads: int | None, architecture: str | None
) -> dict[str, Any]:
    """Infer the sizes for `build_vit` from the shapes of the weights."""
    try:
        patches, args = layout.infer(weights, layout.positions)
        dim, _, height, width = weights[layout.patches].shape
        hidden = weights[f"{layout.block}0.{layout.hidden}"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{given} looks like {layout.family}, but its sizes cannot be inferred: {error}") from error
    if (side := math.isqrt(patches)) ** 2 != patches:
        raise UserError(f"{given} has positions for {patches} patches: not square. Give a folder with timm's "
                        f"config.json, which contains the image size")  # fmt: skip
    if "num_heads" in args and num_heads not in (None, args["num_heads"]):
        raise UserError(f"{given} has {args['num_heads']} attention heads, not {num_heads}")
    heads = args.pop("num_heads", None) or num_heads or default_num_heads(dim)
    if dim % heads:
        raise UserError(f"task.source.num_heads={heads} does not divide the width {dim} of {given}")
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    depth = len({name.removeprefix(layout.block).split(".")[0] for name in weights if name.startswith(layout.block)})
    common = {"embed_dim": dim, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    if args.get("class_token") is False and "fc_norm.weight" not in weights:
        args["fc_norm"] = False  # the norm is applied to all tokens, before the mean
    shapes = {"img_size": [side * height, side * width], "patch_size": height if height == width else [height, width]}
    return from_timm(architecture or layout.architecture, shapes | common | args)


def _build(layout: Layout, weights: Weights, sizes: dict[str, Any], given: str) -> EncoderWeights:
    """The encoder; names and shapes of the converted weights must match it exactly."""
    after_pooling = "fc_norm.weight" in weights or sizes.get("args", {}).get("fc_norm") is False
    num_classes = weights[layout.head].shape[0] if layout.head in weights else 0
    if layout.projection in weights:
        num_classes = weights[layout.projection].numel() // weights[layout.patches].shape[0]
    pool: Pool = "mean" if after_pooling else "cls"
    try:
        with torch.device("meta"):
            model = build_vit(sizes, num_classes, pool, 0.0)
        by_timm = layout.convert(dict(weights), model)
    except Exception as error:  # timm raises various exceptions for unsuitable weights or arguments
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{given} does not fit {sizes.get('timm', layout.family)} ({reason})") from error
    if not is_vision_transformer(model):
        raise UserError(f"{given} is not a vision transformer, which semaim evaluates")
    check_weights(model.state_dict(), by_timm, given)
    heads, patch, image = model.blocks[0].attn.num_heads, model.patch_embed.patch_size, model.patch_embed.img_size
    log.info(
        "%s: %s, width %d, %d blocks, %d heads, images of %dx%d in patches of %d; %s loaded, none missing",
        given, layout.family, model.embed_dim, len(model.blocks), heads, *image, patch[0],
        plural(len(by_timm), "weight"),
    )  # fmt: skip
    return EncoderWeights(sizes, pool, num_classes, by_timm, layout.normalisation)


def is_vision_transformer(model: nn.Module) -> bool:
    """Whether a timm model has the attributes that evaluations use."""
    return hasattr(model, "num_prefix_tokens") and hasattr(model, "blocks")
