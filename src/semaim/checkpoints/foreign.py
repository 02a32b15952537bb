"""Encoders of other projects, from their files or from folders in timm's format."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semaim.checkpoints.formats import LAYOUTS, Layout, Normalisation, Weights, other_model_kind
from semaim.checkpoints.two_stream import check_weights, default_num_heads
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.models.vit import Pool, build_vit, from_timm

log = logging.getLogger(__name__)
USAGE_ARGS = ("num_classes", "global_pool", "drop_path_rate")  # timm arguments that `build_vit` sets itself


@dataclass(frozen=True)
class ForeignEncoder:
    """An encoder from another project's file.

    Attributes:
        sizes: arguments of `build_vit`.
        pool: position of the last norm: on all tokens ("cls"), or on the mean of the patch tokens ("mean").
        num_classes: classes of its trained classifier; 0 for none.
        weights: weights by timm's names, including the head if there is one.
        normalisation: colour normalisation of its images, if known.
    """

    sizes: dict[str, Any]
    pool: Pool
    num_classes: int
    weights: dict[str, Tensor]
    normalisation: Normalisation | None

    def encoder(self) -> VisionTransformer:
        """The encoder without its head."""
        return self._loaded(build_vit(self.sizes, 0, self.pool, 0.0))

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new head; the norm before the head is also new if its position differs in the file."""
        return self._loaded(build_vit(self.sizes, num_classes, pool, drop_path), new=("norm.", "fc_norm.", "head."))

    def trained_classifier(self) -> VisionTransformer:
        """The encoder with its trained head."""
        return self._loaded(build_vit(self.sizes, self.num_classes, self.pool, 0.0))

    def _loaded(self, vit: VisionTransformer, new: tuple[str, ...] = ()) -> VisionTransformer:
        initial = vit.state_dict()
        loaded = {name: value for name, value in self.weights.items() if name in initial}
        if new:
            loaded = {name: value for name, value in loaded.items() if not name.startswith("head.")}
        missing = [name for name in initial.keys() - loaded.keys() if not name.startswith(new)]
        assert not missing, missing
        vit.load_state_dict(initial | loaded)
        return vit


def recognise(weights: Weights, path: Path, num_heads: int | None, architecture: str | None) -> ForeignEncoder:
    """Build the encoder of a known family from its weights; log which weights are loaded and left out.

    Args:
        weights: weights by the names of their project, without prefixes of wrapper modules.
        path: origin of the weights, for messages.
        num_heads: attention heads, if not the default for the width.
        architecture: timm model with the same architecture, if not the default of the family.

    Raises:
        UserError: if the family is unknown, or weights of the encoder are missing.
    """
    layout = next((each for each in LAYOUTS if weights.keys() >= {*each.marks, each.patches}), None)
    if layout is None:
        kind = other_model_kind(weights)
        names = ", ".join(sorted(weights)[:3]) + ", ..." if weights else "no weights"
        raise UserError(
            f"checkpoint={path} holds no supported vision transformer{kind and f' (it {kind})'}: {names} "
            f"docs/moving-weights.md lists the known families; for other models of timm use checkpoint=timm:<name>"
        )
    if layout.ambiguity and architecture is None:
        log.warning("checkpoint %s: %s", path, layout.ambiguity)
    left_out: dict[str, int] = {}
    encoder_weights = {}
    for name, value in weights.items():
        if part := next((part for part, pattern in layout.left_out.items() if re.match(pattern, name)), None):
            left_out[part] = left_out.get(part, 0) + 1
        else:
            encoder_weights[name] = value
    sizes = _sizes(layout, encoder_weights, path, num_heads, architecture)
    classes = encoder_weights[layout.head].shape[0] if layout.head in encoder_weights else 0
    encoder = _build(layout.family, encoder_weights, layout.convert, sizes, classes, layout.normalisation, path)
    if left_out:
        log.info("left out: %s", ", ".join(f"{part} ({plural(n, 'weight')})" for part, n in left_out.items()))
    if architecture is not None and (cfg := timm.get_pretrained_cfg(architecture)) is not None:
        return replace(encoder, normalisation=(tuple(cfg.mean), tuple(cfg.std)))
    return encoder


def from_timm_config(config: Mapping[str, Any], weights: Weights, path: Path) -> ForeignEncoder:
    """Build the encoder in a folder with timm's config.json.

    Args:
        config: content of config.json.
        weights: weights by timm's names.
        path: the folder, for messages.

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
    classes = weights["head.weight"].shape[0] if "head.weight" in weights else 0
    normalisation = (tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= cfg.keys() else None
    name = str(config["architecture"])
    sizes = from_timm(name, args)
    return _build(f"timm's {name}", weights, lambda unchanged, _: unchanged, sizes, classes, normalisation, path)


def _sizes(
    layout: Layout, weights: Weights, path: Path, num_heads: int | None, architecture: str | None
) -> dict[str, Any]:
    """Infer the sizes for `build_vit` from the shapes of the weights."""
    try:
        patches, args = layout.infer(weights)
        dim, _, height, width = weights[layout.patches].shape
        hidden = weights[f"{layout.block}0.{layout.hidden}"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint={path} looks like {layout.family}, but its sizes cannot be inferred: {error}"
        ) from error
    if (side := math.isqrt(patches)) ** 2 != patches:
        raise UserError(f"checkpoint={path} has positions for {patches} patches: not square. Give a folder with timm's "
                        f"config.json, which contains the image size")  # fmt: skip
    if "num_heads" in args and num_heads not in (None, args["num_heads"]):
        raise UserError(f"checkpoint={path} has {args['num_heads']} attention heads, not {num_heads}")
    heads = args.pop("num_heads", None) or num_heads or default_num_heads(dim)
    if dim % heads:
        raise UserError(f"task.source.num_heads={heads} does not divide the width {dim} of checkpoint={path}")
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    depth = len({name.removeprefix(layout.block).split(".")[0] for name in weights if name.startswith(layout.block)})
    common = {"embed_dim": dim, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    if args.get("class_token") is False and "fc_norm.weight" not in weights:
        args["fc_norm"] = False  # the norm is applied to all tokens, before the mean
    shapes = {"img_size": [side * height, side * width], "patch_size": height if height == width else [height, width]}
    return from_timm(architecture or layout.architecture, shapes | common | args)


def _build(
    family: str,
    weights: Weights,
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]],
    sizes: dict[str, Any],
    num_classes: int,
    normalisation: Normalisation | None,
    path: Path,
) -> ForeignEncoder:
    """Build the encoder; names and shapes of the converted weights must match it exactly."""
    after_pooling = "fc_norm.weight" in weights or sizes.get("args", {}).get("fc_norm") is False
    pool: Pool = "mean" if after_pooling else "cls"
    try:
        with torch.device("meta"):
            model = build_vit(sizes, num_classes, pool, 0.0)
        converted = convert(dict(weights), model)
    except Exception as error:  # timm raises various exceptions for unsuitable weights or arguments
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"checkpoint={path} does not fit {sizes.get('timm', family)} ({reason})") from error
    if not is_vision_transformer(model):
        raise UserError(f"checkpoint={path} is not a vision transformer, which semaim evaluates")
    check_weights(model.state_dict(), converted, path)
    heads, patch, image = model.blocks[0].attn.num_heads, model.patch_embed.patch_size, model.patch_embed.img_size
    log.info(
        "checkpoint %s: %s, width %d, %d blocks, %d heads, images of %dx%d in patches of %d; %s loaded, none missing",
        path, family, model.embed_dim, len(model.blocks), heads, *image, patch[0], plural(len(converted), "weight"),
    )  # fmt: skip
    return ForeignEncoder(sizes, pool, num_classes, converted, normalisation)


def is_vision_transformer(model: nn.Module) -> bool:
    """Whether a timm model has the attributes that evaluations use."""
    return hasattr(model, "num_prefix_tokens") and hasattr(model, "blocks")
