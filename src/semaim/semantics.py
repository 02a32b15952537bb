"""Semantic maps: how semantic each patch of an image is.

Shapes: B images, L patches, N = 1 + L tokens (cls first), D width. Source: SemAIM (arXiv 2312.10457), section 3.2.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.errors import UserError


def semantic_map(tokens_BND: Tensor, kind: Literal["cls", "gap"] = "cls") -> Tensor:
    """Similarity of every patch token with a global token, as a distribution over patches.

    Args:
        tokens_BND: encoder tokens after the final norm, cls first.
        kind: the global token: "cls", or "gap", the mean of the patch tokens.

    Returns:
        float32 (B, L): softmax over patches of the cosine similarities; rows sum to 1.

    Raises:
        UserError: for another kind.
    """
    tokens_BND = tokens_BND.float()
    patches_BLD = tokens_BND[:, 1:]
    if kind == "cls":
        global_B1D = tokens_BND[:, :1]
    elif kind == "gap":
        global_B1D = patches_BLD.mean(1, keepdim=True)
    else:
        raise UserError(
            f"semantic map {kind!r} is unknown: choose cls or gap (self needs the encoder, see SemanticMap)"
        )
    return F.cosine_similarity(global_B1D, patches_BLD, dim=-1).softmax(-1)


class Encoder(Protocol):
    """What a semantic map needs of a model."""

    def encode(self, images_BCHW: Tensor) -> Tensor: ...

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]: ...


class SemanticMap:
    """Computes semantic maps with one encoder pass without mask, drop path or gradient.

    Args:
        kind: "cls" or "gap" similarity, or "self": attention of the last block from cls, averaged over heads.
        source: "online", the encoder being trained, or "ema", its moving average (needs trainer.ema=true).
        full_precision: run the pass in float32 although training runs in a lower precision.
    """

    def __init__(
        self,
        kind: Literal["cls", "gap", "self"] = "cls",
        source: Literal["online", "ema"] = "online",
        full_precision: bool = False,
    ) -> None:
        if kind not in ("cls", "gap", "self"):
            raise UserError(f"semantic_map.kind={kind} is unknown: choose cls, gap or self")
        if source not in ("online", "ema"):
            raise UserError(f"semantic_map.source={source} is unknown: choose online or ema")
        self.kind = kind
        self.source = source
        self.full_precision = full_precision

    def __call__(self, encoder: Encoder, images_BCHW: Tensor) -> Tensor:
        """Maps (B, L), float32, in the autocast precision of the caller unless `full_precision`."""
        return self.with_tokens(encoder, images_BCHW)[0]

    @torch.no_grad()
    def with_tokens(self, encoder: Encoder, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, and the tokens (B, N, D) of the pass that they are made of."""
        device = images_BCHW.device.type
        enabled = torch.is_autocast_enabled(device) and not self.full_precision
        with torch.autocast(device, torch.get_autocast_dtype(device), enabled=enabled):
            if self.kind == "self":
                tokens_BND, attention_BL = encoder.encode_with_attention(images_BCHW)
                return attention_BL.float(), tokens_BND
            tokens_BND = encoder.encode(images_BCHW)
            return semantic_map(tokens_BND, self.kind), tokens_BND
