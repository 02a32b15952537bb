"""The passes without gradient over the images of a batch: each network makes one at most, whoever asks for its tokens.

Shapes: B images, C channels, L patches, N = 1 + L tokens (cls first), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Encoder(Protocol):
    """What makes tokens of images without mask, dropout or drop path: the model, its moving average, a teacher."""

    def encode(self, images_BCHW: Tensor) -> Tensor: ...

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]: ...


class TokenCache:
    """Tokens of the images of a batch, computed when they are first asked for.

    Args:
        encoders: networks by name: "online" (the model that learns), "ema" (its moving average), "teacher".
        images_BCHW: normalised images.
    """

    def __init__(self, encoders: Mapping[str, Encoder], images_BCHW: Tensor) -> None:
        self.encoders = encoders
        self.images_BCHW = images_BCHW
        self._tokens: dict[str, Tensor] = {}

    @torch.no_grad()
    def tokens(self, network: str) -> Tensor:
        """Tokens (B, N, D) of a network after its final norm, in the precision of whoever asked first."""
        if network not in self._tokens:
            self._tokens[network] = self.encoders[network].encode(self.images_BCHW)
        return self._tokens[network]

    @torch.no_grad()
    def attention(self, network: str) -> Tensor:
        """The last block's attention from cls to each patch averaged over heads, (B, L).

        Always a pass of its own, whose tokens serve those who ask for them afterwards.
        """
        self._tokens[network], attention_BL = self.encoders[network].encode_with_attention(self.images_BCHW)
        return attention_BL
