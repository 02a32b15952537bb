"""Pretraining checkpoints of the methods' authors: how their weights are recognised, and the sizes of their models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from semaim.checkpoints.formats import unwrapped
from semaim.checkpoints.huggingface import from_huggingface_mae
from semaim.errors import UserError

log = logging.getLogger(__name__)
Weights = Mapping[str, Tensor]
WITH_16_HEADS = (1024, 1152, 1280, 1408, 1664)  # widths of ViT-L, SoViT, ViT-H, ViT-g and ViT-bigG
ENCODER = {"patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"}


@dataclass(frozen=True)
class Official:
    """Pretraining checkpoints of a project.

    Attributes:
        project: its name.
        required: names of weights that identify them, each a set of which one is there.
        sizes: the other arguments of the model than those of every encoder, given the weights and the number of
            attention heads of the decoder, if the user gave it.
        fixed: weights that are computed instead of loaded, and why.
    """

    project: str
    required: tuple[frozenset[str], ...]
    sizes: Callable[[Weights, int | None], dict[str, Any]]
    fixed: Mapping[str, str]

    def matches(self, weights: Weights) -> bool:
        """Whether weights are of this kind."""
        return all(names & weights.keys() for names in self.required)


def blocks_of(weights: Weights, prefix: str) -> int:
    """Number of blocks whose weights have a prefix."""
    return len({name.split(".")[1] for name in weights if name.startswith(prefix)})


def two_stream_sizes(weights: Weights, decoder_num_heads: int | None) -> dict[str, Any]:
    """Arguments of `AIM`."""
    if decoder_num_heads is not None:
        raise UserError("decoder_num_heads is for checkpoints of MAE: the query blocks have the heads of the encoder")
    linear = "prediction_head.weight" in weights
    return {
        "out_channels": weights[f"prediction_head.{'' if linear else 'fc2.'}weight"].shape[0],
        "query_depth": blocks_of(weights, "query_blocks."),
        "head": "linear" if linear else "mlp",
    }


def mae_sizes(weights: Weights, decoder_num_heads: int | None) -> dict[str, Any]:
    """Arguments of `MAE`; its code sees a quarter of the patches, and its decoders have 16 heads."""
    out_channels, dim = weights["decoder_pred.weight"].shape
    if decoder_num_heads is None:
        decoder_num_heads = 16 if dim % 16 == 0 and dim >= 512 else default_num_heads(dim)
        log.info("assuming %d attention heads for the decoder's width %d", decoder_num_heads, dim)
    return {
        "model": "mae",
        "out_channels": out_channels,
        "decoder_dim": dim,
        "decoder_depth": blocks_of(weights, "decoder_blocks."),
        "decoder_num_heads": decoder_num_heads,
    }


HEADS = frozenset({"prediction_head.weight", "prediction_head.fc2.weight"})
OFFICIAL = (
    Official(
        "SemAIM's or SAIM's code",
        (*(frozenset({name}) for name in (*ENCODER, "pos_embed", "query_blocks.0.attn.q.weight")), HEADS),
        two_stream_sizes,
        {"gaussian_blur.weight": "the target's fixed blur kernel"},  # semaim.targets.Pixels computes it
    ),
    Official(
        "MAE's code",
        tuple(
            frozenset({name})
            for name in (*ENCODER, "pos_embed", "mask_token", "decoder_pos_embed", "decoder_embed.weight",
                         "decoder_blocks.0.attn.qkv.weight", "decoder_pred.weight")
        ),
        mae_sizes,
        {},
    ),
)  # fmt: skip


def read_official(
    state: dict[str, Any], given: str, num_heads: int | None, decoder_num_heads: int | None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The project, the architecture and the weights of an official checkpoint.

    Args:
        state: content of the file.
        given: option and value that named it, for messages.
        num_heads, decoder_num_heads: attention heads, which the weights do not determine; None for the usual ones.

    Raises:
        UserError: if it is none.
    """
    weights = from_huggingface_mae(unwrapped(state))
    official = next((each for each in OFFICIAL if each.matches(weights)), None)
    if official is None:
        raise UserError(f"{given} {what_instead(weights, state)}")
    for name, what in official.fixed.items():
        if weights.pop(name, None) is not None:
            log.info("left out: %s", what)
    sizes = encoder_sizes(weights, num_heads, given) | official.sizes(weights, decoder_num_heads)
    for width, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_num_heads")):
        if width in sizes and (sizes[heads] < 1 or sizes[width] % sizes[heads]):
            raise UserError(f"{heads}={sizes[heads]} does not divide the width {sizes[width]} of {given}")
    return official.project, sizes, weights


def what_instead(weights: Weights, state: Mapping[str, Any]) -> str:
    """Describe a file that is no pretraining checkpoint."""
    if weights.keys() >= ENCODER and not any(name.startswith(("query_blocks.", "decoder_")) for name in weights):
        return (
            "holds an encoder without what predicts patches (MAE's files for fine-tuning, and fine-tuned ones, have no "
            "decoder): give the pretraining checkpoint with its decoder; an encoder alone is for evaluations, such as "
            "task=knn"
        )
    return (
        f"is not a pretraining checkpoint of semaim, SemAIM, SAIM or MAE: it holds "
        f"{sorted(weights)[:3] or sorted(state)[:3]}, ... (other projects' encoders are for evaluations: task=knn)"
    )


def default_num_heads(dim: int) -> int:
    """Usual number of attention heads of a vision transformer of a width."""
    usual = 16 if dim in WITH_16_HEADS else dim // 64 if dim % 64 == 0 else max(1, dim // 16)
    return next(heads for heads in range(usual, 0, -1) if dim % heads == 0)


def encoder_sizes(weights: Weights, num_heads: int | None, given: str) -> dict[str, Any]:
    """Sizes of the encoder; the grid is assumed to be square."""
    dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side + 1 != weights["pos_embed"].shape[1]:
        raise UserError(f"{given} has positions for {weights['pos_embed'].shape[1] - 1} patches: not square")
    if num_heads is None:
        num_heads = default_num_heads(dim)
        log.info("%s: assuming %d attention heads for width %d", given, num_heads, dim)
    return {
        "image_size": (side * patch_size, side * patch_size),
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": blocks_of(weights, "blocks."),
        "num_heads": num_heads,
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / dim,
    }
