"""Cache of encoder tokens of a batch, computed without gradient; each network encodes the batch at most once.

Shapes: B images, C channels, L patches, N = 1 + L tokens (cls first), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Encoder(Protocol):
    """Interface of networks that encode images without mask, dropout or drop path: model, moving average, teacher."""

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, N, D) of normalised images, after the final norm."""
        ...

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, plus the last block's attention from cls to each patch averaged over heads, (B, L)."""
        ...


class TokenCache:
    """Tokens of the images of a batch, computed on first use.

    Args:
        encoders: networks by name: "online" (the model being trained), "ema" (its moving average), "teacher".
        images_BCHW: normalised images.
    """

    def __init__(self, encoders: Mapping[str, Encoder], images_BCHW: Tensor) -> None:
        self.encoders = encoders
        self.images_BCHW = images_BCHW
        self._tokens: dict[str, Tensor] = {}

    @torch.no_grad()
    def tokens(self, network: str) -> Tensor:
        """Tokens (B, N, D) of a network after its final norm, in the precision of the first call."""
        if network not in self._tokens:
            self._tokens[network] = self.encoders[network].encode(self.images_BCHW)
        return self._tokens[network]

    @torch.no_grad()
    def attention(self, network: str) -> Tensor:
        """The last block's attention from cls to each patch averaged over heads, (B, L).

        Always runs a new pass; its tokens replace the cached ones.
        """
        self._tokens[network], attention_BL = self.encoders[network].encode_with_attention(self.images_BCHW)
        return attention_BL
