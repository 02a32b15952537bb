"""Encoders of other projects, from their files or from folders that timm can read."""

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

from semaim.checkpoints.formats import LAYOUTS, Layout, Normalisation, Weights, what_else
from semaim.checkpoints.two_stream import check_weights, usual_heads
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.models.vit import Pool, build_vit, from_timm

log = logging.getLogger(__name__)
SET_BY_USE = ("num_classes", "global_pool", "drop_path_rate")  # of timm's arguments


@dataclass(frozen=True)
class ForeignEncoder:
    """An encoder that another project's file holds.

    Attributes:
        sizes: for `build_vit`.
        pool: where its last norm stands: on all tokens ("cls"), or on the mean of those of the patches ("mean").
        num_classes: of the classifier that was trained on it; 0 for none.
        weights: by timm's names, with the head if there is one.
        normalisation: that of its images, if it is known.
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
        """The encoder with a new head; the norm before it also starts anew if it stands elsewhere in the file."""
        return self._loaded(build_vit(self.sizes, num_classes, pool, drop_path), new=("norm.", "fc_norm.", "head."))

    def trained_classifier(self) -> VisionTransformer:
        """The encoder with the head that was trained on it."""
        return self._loaded(build_vit(self.sizes, self.num_classes, self.pool, 0.0))

    def _loaded(self, vit: VisionTransformer, new: tuple[str, ...] = ()) -> VisionTransformer:
        own = vit.state_dict()
        taken = {name: value for name, value in self.weights.items() if name in own}
        if new:
            taken = {name: value for name, value in taken.items() if not name.startswith("head.")}
        begun = [name for name in own.keys() - taken.keys() if not name.startswith(new)]
        assert not begun, begun
        vit.load_state_dict(own | taken)
        return vit


def recognise(weights: Weights, path: Path, num_heads: int | None, architecture: str | None) -> ForeignEncoder:
    """The encoder that weights are of; says what was taken and what left out.

    Args:
        weights: by the names of their project, without prefixes of wrappers around the model.
        path: where they are from, for messages.
        num_heads: attention heads, if not the usual number for the width.
        architecture: a model of timm's with the same parts, if not the one that the family usually has.

    Raises:
        UserError: if they are of no family known here, or not every weight of the encoder is among them.
    """
    layout = next((each for each in LAYOUTS if weights.keys() >= {*each.marks, each.patches}), None)
    if layout is None:
        kind = what_else(weights)
        names = ", ".join(sorted(weights)[:3]) + ", ..." if weights else "no weights"
        raise UserError(
            f"checkpoint={path} holds no vision transformer that semaim knows{kind and f' (it {kind})'}: {names} "
            f"docs/moving-weights.md says what is known; all else of timm's goes by checkpoint=timm:<name>"
        )
    if layout.doubt and architecture is None:
        log.warning("checkpoint %s: %s", path, layout.doubt)
    left_out: dict[str, int] = {}
    wanted = {}
    for name, value in weights.items():
        if part := next((part for part, start in layout.left_out.items() if re.match(start, name)), None):
            left_out[part] = left_out.get(part, 0) + 1
        else:
            wanted[name] = value
    sizes = _sizes(layout, wanted, path, num_heads, architecture)
    classes = wanted[layout.head].shape[0] if layout.head in wanted else 0
    found = _fitted(layout.family, wanted, layout.convert, sizes, classes, layout.normalisation, path)
    if left_out:
        log.info("left out: %s", ", ".join(f"{part} ({plural(n, 'weight')})" for part, n in left_out.items()))
    if architecture is not None and (card := timm.get_pretrained_cfg(architecture)) is not None:
        return replace(found, normalisation=(tuple(card.mean), tuple(card.std)))
    return found


def of_timm(config: Mapping[str, Any], weights: Weights, path: Path) -> ForeignEncoder:
    """The encoder in a folder with timm's config.json.

    Args:
        config: what that file holds.
        weights: by timm's names.
        path: the folder, for messages.

    Raises:
        UserError: if the model is no vision transformer, or its weights do not fit it.
    """
    card = config.get("pretrained_cfg", config)
    args = {key: value for key, value in config.get("model_args", {}).items() if key not in SET_BY_USE}
    if card.get("fixed_input_size") and card.get("input_size"):
        args.setdefault("img_size", card["input_size"][-2:])
    if "cls_token" not in weights and "fc_norm.weight" not in weights:
        args["fc_norm"] = False
    weights = {name: value for name, value in weights.items() if not name.startswith("attn_pool.")}
    classes = weights["head.weight"].shape[0] if "head.weight" in weights else 0
    normalisation = (tuple(card["mean"]), tuple(card["std"])) if {"mean", "std"} <= card.keys() else None
    name = str(config["architecture"])
    sizes = from_timm(name, args)
    return _fitted(f"timm's {name}", weights, lambda same, _: same, sizes, classes, normalisation, path)


def _sizes(
    layout: Layout, weights: Weights, path: Path, num_heads: int | None, architecture: str | None
) -> dict[str, Any]:
    """What `build_vit` needs, from the shapes of weights."""
    try:
        patches, args = layout.tokens(weights)
        dim, _, height, width = weights[layout.patches].shape
        hidden = weights[f"{layout.block}0.{layout.hidden}"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint={path} looks like {layout.family}, but its sizes cannot be told: {error}"
        ) from error
    if (side := math.isqrt(patches)) ** 2 != patches:
        raise UserError(f"checkpoint={path} has positions for {patches} patches: not square. Give a folder with timm's "
                        f"config.json, which says the image size")  # fmt: skip
    if "num_heads" in args and num_heads not in (None, args["num_heads"]):
        raise UserError(f"checkpoint={path} has {args['num_heads']} attention heads, not {num_heads}")
    heads = args.pop("num_heads", None) or num_heads or usual_heads(dim)
    if dim % heads:
        raise UserError(f"task.source.num_heads={heads} does not divide the width {dim} of checkpoint={path}")
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    depth = len({name.removeprefix(layout.block).split(".")[0] for name in weights if name.startswith(layout.block)})
    common = {"embed_dim": dim, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    if args.get("class_token") is False and "fc_norm.weight" not in weights:
        args["fc_norm"] = False  # the norm stands on the tokens, although their mean is what is read
    shapes = {"img_size": [side * height, side * width], "patch_size": height if height == width else [height, width]}
    return from_timm(architecture or layout.architecture, shapes | common | args)


def _fitted(
    family: str,
    weights: Weights,
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]],
    sizes: dict[str, Any],
    num_classes: int,
    normalisation: Normalisation | None,
    path: Path,
) -> ForeignEncoder:
    """The encoder, of whose weights each must be there and have its shape, and no other."""
    after_pooling = "fc_norm.weight" in weights or sizes.get("args", {}).get("fc_norm") is False
    pool: Pool = "mean" if after_pooling else "cls"
    try:
        with torch.device("meta"):
            model = build_vit(sizes, num_classes, pool, 0.0)
        ours = convert(dict(weights), model)
    except Exception as error:  # timm's models assert, or do not have, what they are not made for
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"checkpoint={path} does not fit {sizes.get('timm', family)} ({said})") from error
    if not is_vision_transformer(model):
        raise UserError(f"checkpoint={path} is not a vision transformer, which semaim evaluates")
    check_weights(model.state_dict(), ours, path)
    heads, patch, image = model.blocks[0].attn.num_heads, model.patch_embed.patch_size, model.patch_embed.img_size
    log.info(
        "checkpoint %s: %s, width %d, %d blocks, %d heads, images of %dx%d in patches of %d; %s taken, none missing",
        path, family, model.embed_dim, len(model.blocks), heads, *image, patch[0], plural(len(ours), "weight"),
    )  # fmt: skip
    return ForeignEncoder(sizes, pool, num_classes, ours, normalisation)


def is_vision_transformer(model: nn.Module) -> bool:
    """Whether a model of timm's has the parts that evaluations use."""
    return hasattr(model, "num_prefix_tokens") and hasattr(model, "blocks")
