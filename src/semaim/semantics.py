"""Semantic maps: the similarity of each patch of an image to a global token.

Shapes: B images, L patches, N = 1 + L tokens (cls first), D width. Source: SemAIM (arXiv 2312.10457), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.errors import UserError
from semaim.models.token_cache import TokenCache


def semantic_map(tokens_BND: Tensor, kind: Literal["cls", "gap"] = "cls") -> Tensor:
    """Compute the similarity of every patch token to a global token, as a distribution over patches.

    Args:
        tokens_BND: encoder tokens after the final norm, cls first.
        kind: the global token: "cls", or "gap", the mean of the patch tokens.

    Returns:
        float32 (B, L): softmax over patches of the cosine similarities; rows sum to 1.

    Raises:
        UserError: if the kind is unknown.
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


@dataclass(eq=False)
class SemanticMap:
    """Computes semantic maps from encoder tokens, without mask, drop path or gradient.

    Args:
        kind: "cls" or "gap" similarity, or "self": attention of the last block from cls, averaged over heads.
        source: network that encodes the tokens: "online" (the encoder being trained), "ema" (its moving
            average), "teacher" (that of target=dino or target=clip), or "auto": the network of the target, or "online"
            if the target is pixels.
        full_precision: run this pass in float32 even if training uses a lower precision; a target or classifier that
            shares the pass gets these tokens too.
    """

    kind: Literal["cls", "gap", "self"] = "cls"
    source: Literal["auto", "online", "ema", "teacher"] = "auto"
    full_precision: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("cls", "gap", "self"):
            raise UserError(f"semantic_map.kind={self.kind} is unknown: choose cls, gap or self")
        if self.source not in ("auto", "online", "ema", "teacher"):
            raise UserError(f"semantic_map.source={self.source} is unknown: choose auto, online, ema or teacher")

    def network_beside(self, target_network: str | None) -> str:
        """Name of the network whose tokens make the map.

        Args:
            target_network: network whose tokens are the target, or None.
        """
        return (target_network or "online") if self.source == "auto" else self.source

    def __call__(self, cache: TokenCache, network: str) -> Tensor:
        """Maps (B, L), float32, from a network's tokens; in the caller's autocast precision unless `full_precision`."""
        device = cache.images_BCHW.device.type
        enabled = torch.is_autocast_enabled(device) and not self.full_precision
        with torch.no_grad(), torch.autocast(device, torch.get_autocast_dtype(device), enabled=enabled):
            if self.kind == "self":
                return cache.attention(network).float()
            return semantic_map(cache.tokens(network), self.kind)
