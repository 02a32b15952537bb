"""Autoregressive image model: a content stream (the ViT that is kept) and a query stream that predicts patches.

Shapes: B images, C channels, (h, w) grid, L = h * w patches, N = 1 + L tokens, D width, P target channels.
`order_BL[b, t]` is the raster index of the patch predicted at step t.

References: SAIM (arXiv 2212.01610), SemAIM (arXiv 2312.10457, section 3). Parameter names equal those of the
authors' code, so that their checkpoints load without renaming.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import Mlp, PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.models.layers import LAYER_NORM_EPS, Block, QueryBlock, gather_rows, xavier_init
from semaim.models.positions import sincos_2d


class AIM(nn.Module):
    """Two-stream autoregressive image model.

    Args:
        out_channels: P, channels predicted per patch (given by the target).
        image_size: pixels, one number or (height, width); divisible by the patch size.
        patch_size: pixels per side of a patch.
        embed_dim: D.
        depth: blocks of the content stream (the encoder).
        num_heads: attention heads; divides embed_dim.
        query_depth: blocks of the query stream; divides depth. Query block j reads the content stream after content
            block (j + 1) * depth / query_depth.
        mlp_ratio: hidden width of the MLPs over D.
        head: "mlp" (hidden width mlp_ratio * D, GELU) or "linear".
        drop_path: stochastic depth rate of the last block, growing linearly from 0 at the first.

    Raises:
        UserError: if the sizes do not fit each other.
    """

    def __init__(
        self,
        out_channels: int,
        image_size: int | tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        query_depth: int,
        mlp_ratio: float = 4.0,
        head: Literal["mlp", "linear"] = "mlp",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size = pair(image_size)
        self.patch_size = patch_size
        self.grad_checkpointing = False
        _check_sizes(self.image_size, patch_size, embed_dim, depth, num_heads, query_depth, head)
        # Determines shapes and meaning of the weights; stored in checkpoints.
        self.architecture = {
            "out_channels": out_channels,
            "image_size": self.image_size,
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "query_depth": query_depth,
            "mlp_ratio": mlp_ratio,
            "head": head,
        }
        self.grid = (self.image_size[0] // patch_size, self.image_size[1] // patch_size)
        self.read_every = depth // query_depth

        self.patch_embed = PatchEmbed(self.image_size, patch_size, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        positions = torch.cat([torch.zeros(1, embed_dim), sincos_2d(embed_dim, self.grid)])
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", positions[None])
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.query_blocks = nn.ModuleList(
            QueryBlock(embed_dim, num_heads, mlp_ratio, rate) for rate in rates[self.read_every - 1 :: self.read_every]
        )
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.prediction_head = (
            Mlp(embed_dim, round(embed_dim * mlp_ratio), out_channels)
            if head == "mlp"
            else nn.Linear(embed_dim, out_channels)
        )
        self.apply(xavier_init)
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return self.norm.weight.shape[0]

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        """Patch embeddings with their positions, raster-indexed: (B, L, D)."""
        return self.patch_embed(images_BCHW) + self.pos_embed[:, 1:]

    def _with_cls(self, patches_BLD: Tensor) -> Tensor:
        """Prepend the class token; its position embedding is zero."""
        return torch.cat([self.cls_token.expand(len(patches_BLD), -1, -1), patches_BLD], dim=1)

    def forward(self, images_BCHW: Tensor, order_BL: Tensor) -> Tensor:
        """Predict every patch from those before it in its image's order.

        The patches are gathered into prediction order once. The content mask is then the causal mask over
        [cls, p_1, ..., p_{L-1}] (no query reads the last patch), and the query mask is the causal mask of L queries
        over the same L keys. The first patch is predicted from the class token alone.

        Args:
            images_BCHW: normalised images.
            order_BL: long, each row a permutation of 0..L-1.

        Returns:
            predictions (B, L, P), raster-indexed.
        """
        content_BLD = self._with_cls(gather_rows(self._patches(images_BCHW), order_BL[:, :-1]))
        query_BLD = self.pos_embed[0, 1:][order_BL]
        for depth, block in enumerate(self.blocks, start=1):
            content_BLD = self._run(block, content_BLD, True, self.training)
            if depth % self.read_every == 0:
                query_block = self.query_blocks[depth // self.read_every - 1]
                query_BLD = self._run(query_block, query_BLD, content_BLD, self.training)
        predictions_BLP = self.prediction_head(self.norm(query_BLD))
        return gather_rows(predictions_BLP, order_BL.argsort(1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backward pass compute activations inside of blocks again: less memory, about a third more time."""
        self.grad_checkpointing = enable

    def _run(self, block: nn.Module, *args: Tensor | bool) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def predict(self, images_BCHW: Tensor, order_BL: Tensor) -> Tensor:
        """Raster-indexed predictions (B, L, P) of normalised images under the given orders; see `forward`."""
        return self(images_BCHW, order_BL)

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


def _check_sizes(
    image_size: tuple[int, int],
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    query_depth: int,
    head: str,
) -> None:
    if patch_size < 1 or any(side < patch_size or side % patch_size for side in image_size):
        raise UserError(
            f"the image size {image_size[0]}x{image_size[1]} is not divisible by the patch size {patch_size}: "
            f"change data.image_size or data.patch_size (model.patch_size)"
        )
    if num_heads < 1 or embed_dim % num_heads:
        raise UserError(f"model.num_heads={num_heads} must divide model.embed_dim={embed_dim}")
    if query_depth < 1 or depth % query_depth:
        divisors = [n for n in range(1, depth + 1) if depth % n == 0]
        raise UserError(f"model.query_depth={query_depth} must divide model.depth={depth}: choose one of {divisors}")
    if head not in ("mlp", "linear"):
        raise UserError(f"model.head={head} is unknown: choose mlp or linear")
    if image_size == (patch_size, patch_size):
        raise UserError("an image of a single patch leaves nothing to predict from: choose a smaller patch size")
