"""What every pretrained model is: a ViT encoder, and a way to predict patches of an image from others, in an order.

Shapes: B images, C channels, (h, w) grid, L = h * w patches, N = 1 + L tokens, D width, P target channels.
`order_BL[b, t]` is the raster index of the patch at place t of the order of image b.

The parts of the encoder have the names of timm's and of MAE's code, so that their weights load without renaming.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.models.layers import LAYER_NORM_EPS, Block
from semaim.models.positions import sincos_2d


class Prediction(NamedTuple):
    """Predictions of the patches of images.

    Attributes:
        predictions_BLP: raster-indexed.
        counted_BL: bool, the patches whose loss counts, at least one of every image; None if all do.
    """

    predictions_BLP: Tensor
    counted_BL: Tensor | None = None

    def mean(self, loss_BL: Tensor) -> Tensor:
        """Mean of a loss per patch over the patches that count: (B,)."""
        if self.counted_BL is None:
            return loss_BL.mean(1)
        return loss_BL.masked_fill(~self.counted_BL, 0.0).sum(1) / self.counted_BL.sum(1)


class Stream(NamedTuple):
    """Transformer blocks that follow each other in training.

    Attributes:
        blocks: the blocks.
        tokens: of an image.
        context: tokens of an image that each block reads besides.
        own_context: whether these are computed for each block, and not the states of another stream.
    """

    blocks: nn.ModuleList
    tokens: int
    context: int = 0
    own_context: bool = False

    @property
    def width(self) -> int:
        """Width of their tokens."""
        norm = self.blocks[0].norm1
        assert isinstance(norm, nn.LayerNorm)
        return norm.normalized_shape[0]


class Predictor(nn.Module, ABC):
    """A ViT encoder with fixed positions. A subclass adds `norm`, what predicts patches, and `forward`.

    Args:
        image_size: pixels, one number or (height, width); divisible by the patch size.
        patch_size: pixels per side of a patch.
        embed_dim: D.
        depth: blocks of the encoder.
        num_heads: attention heads; divides embed_dim.
        mlp_ratio: hidden width of the MLPs over D.
        drop_path: stochastic depth rate of the last block, growing linearly from 0 at the first.

    Attributes:
        architecture: determines shapes and meaning of the weights; stored in checkpoints. A subclass adds its own
            arguments to those of the encoder.
        norm: the norm after the last block. The subclass makes it, because the order of parameters is that of the
            optimizer's state in checkpoints.

    Raises:
        UserError: if the sizes do not fit each other.
    """

    architecture: dict[str, Any]
    norm: nn.LayerNorm
    pos_embed: Tensor

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.image_size = pair(image_size)
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.grad_checkpointing = False
        _check_sizes(self.image_size, patch_size, embed_dim, num_heads)
        self.architecture = {
            "image_size": self.image_size,
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
        }
        self.grid = (self.image_size[0] // patch_size, self.image_size[1] // patch_size)
        self.drop_path_rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.patch_embed = PatchEmbed(self.image_size, patch_size, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("pos_embed", positions_with_cls(embed_dim, self.grid))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in self.drop_path_rates)

    @property
    @abstractmethod
    def streams(self) -> list[Stream]:
        """The stacks of blocks that predict patches, the encoder's first."""

    @abstractmethod
    def forward(self, images_BCHW: Tensor, order_BL: Tensor) -> Prediction:
        """Predict patches from others.

        Args:
            images_BCHW: normalised images.
            order_BL: long, each row a permutation of 0..L-1.
        """

    def predict(self, images_BCHW: Tensor, order_BL: Tensor) -> Tensor:
        """Raster-indexed predictions (B, L, P) of normalised images under the given orders; see `forward`."""
        prediction: Prediction = self(images_BCHW, order_BL)
        return prediction.predictions_BLP

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, N, D) of the plain ViT: no mask, no drop path, final norm applied. Token 0 is cls."""
        tokens_BND = self._with_cls(self._patches(images_BCHW))
        for block in self.blocks:
            tokens_BND = block(tokens_BND, False, False)
        return self.norm(tokens_BND)

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, plus the last block's attention from cls to each patch averaged over heads, (B, L)."""
        tokens_BND = self._with_cls(self._patches(images_BCHW))
        for block in self.blocks[:-1]:
            tokens_BND = block(tokens_BND, False, False)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        tokens_BND, attention_BL = last.forward_with_attention(tokens_BND)
        return self.norm(tokens_BND), attention_BL

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backward pass compute activations inside of blocks again: less memory, about a third more time."""
        self.grad_checkpointing = enable

    def _make_norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.embed_dim, eps=LAYER_NORM_EPS)

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        """Patch embeddings with their positions, raster-indexed: (B, L, D)."""
        return self.patch_embed(images_BCHW) + self.pos_embed[:, 1:]

    def _with_cls(self, patches_BLD: Tensor) -> Tensor:
        """Prepend the class token; its position embedding is zero."""
        return torch.cat([self.cls_token.expand(len(patches_BLD), -1, -1), patches_BLD], dim=1)

    def _run(self, block: nn.Module, *args: Tensor | bool) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def positions_with_cls(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions (1, N, D): those of the patches, after zeros for the class token."""
    return torch.cat([torch.zeros(1, dim), sincos_2d(dim, grid)])[None]


def _check_sizes(image_size: tuple[int, int], patch_size: int, embed_dim: int, num_heads: int) -> None:
    if patch_size < 1 or any(side < patch_size or side % patch_size for side in image_size):
        raise UserError(
            f"the image size {image_size[0]}x{image_size[1]} is not divisible by the patch size {patch_size}: "
            f"change data.image_size or data.patch_size (model.patch_size)"
        )
    if num_heads < 1 or embed_dim % num_heads:
        raise UserError(f"model.num_heads={num_heads} must divide model.embed_dim={embed_dim}")
    if image_size == (patch_size, patch_size):
        raise UserError("an image of a single patch leaves nothing to predict from: choose a smaller patch size")


def number_of_patches(share: float, patches: int) -> int:
    """A share of the patches, rounded down, as MAE's code counts; 0.25 of 196 are 49.

    The share of a whole number is not always exact: 0.29 * 100 is 28.999999999999996.
    """
    return int(share * patches + 1e-6)
