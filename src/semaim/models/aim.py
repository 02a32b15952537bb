"""Autoregressive image model: a content stream (the ViT that is kept) and a query stream that predicts patches.

Shapes: B images, C channels, (h, w) grid, L = h * w patches, D width, P target channels, N content tokens.
`order_BL[b, t]` is the raster index of the patch predicted at step t.

References: SAIM (arXiv 2212.01610), SemAIM (arXiv 2312.10457, section 3); segments: RandSAC (arXiv 2203.12054).
Parameter names equal those of SemAIM's and SAIM's code, so that their checkpoints load without renaming.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from semaim.errors import UserError
from semaim.models.layers import Mask, QueryBlock, gather_rows, xavier_init
from semaim.models.predictor import Prediction, Predictor, Stream
from semaim.models.segments import content_patches, segment_masks


class AIM(Predictor):
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
        segments: K, consecutive parts of the order whose patches are predicted in parallel; None for one per patch. Of
            L patches, the first L modulo K segments have one more than the others.
        skip_connections: query blocks read learned sums of the content stream after all of its blocks; at first what
            they would read without.

    Raises:
        UserError: if the sizes do not fit each other.
    """

    content_mask: Mask
    query_mask: Mask

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
        segments: int | None = None,
        skip_connections: bool = False,
    ) -> None:
        if query_depth < 1 or depth % query_depth:
            divisors = [n for n in range(1, depth + 1) if depth % n == 0]
            raise UserError(
                f"model.query_depth={query_depth} must divide model.depth={depth}: choose one of {divisors}"
            )
        if head not in ("mlp", "linear"):
            raise UserError(f"model.head={head} is unknown: choose mlp or linear")
        super().__init__(image_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, drop_path)
        self.architecture |= {"out_channels": out_channels, "query_depth": query_depth, "head": head}
        self.architecture |= {} if segments is None else {"segments": segments}
        self.architecture |= {"skip_connections": True} if skip_connections else {}
        self.read_every = depth // query_depth
        self._set_segments(segments)
        self.query_blocks = nn.ModuleList(
            QueryBlock(embed_dim, num_heads, mlp_ratio, rate)
            for rate in self.drop_path_rates[self.read_every - 1 :: self.read_every]
        )
        self.norm = self._make_norm()
        self.prediction_head = (
            Mlp(embed_dim, round(embed_dim * mlp_ratio), out_channels)
            if head == "mlp"
            else nn.Linear(embed_dim, out_channels)
        )
        self.skip_weights = nn.ParameterList()
        if skip_connections:
            read = torch.eye(depth)[self.read_every - 1 :: self.read_every]
            self.skip_weights.extend(nn.Parameter(row) for row in read.unbind())
        self.apply(xavier_init)
        nn.init.normal_(self.cls_token, std=0.02)

    def _set_segments(self, segments: int | None) -> None:
        """Set the masks of both streams; with a segment per patch they are causal, and no tensor is needed."""
        patches = self.grid[0] * self.grid[1]
        self.segments = patches if segments is None else segments
        if not 1 <= self.segments <= patches:
            raise UserError(
                f"model.segments={segments} must be from 1 to the number of patches, which is {patches} "
                f"({self.grid[0]}x{self.grid[1]})"
            )
        self.content_patches = content_patches(patches, self.segments)
        if self.segments == patches:
            self.content_mask, self.query_mask = True, True
            return
        content_mask_NN, query_mask_LN = segment_masks(patches, self.segments)
        self.register_buffer("content_mask", content_mask_NN, persistent=False)
        self.register_buffer("query_mask", query_mask_LN, persistent=False)

    @property
    def streams(self) -> list[Stream]:
        """Content stream and query stream."""
        content = 1 + self.content_patches
        queries = Stream(self.query_blocks, self.grid[0] * self.grid[1], content, own_context=bool(self.skip_weights))
        return [Stream(self.blocks, content), queries]

    def forward(self, images_BCHW: Tensor, order_BL: Tensor) -> Prediction:
        """Predict every patch from the segments before its own in its image's order; all patches count.

        The patches are gathered into prediction order once. With a segment per patch, the content mask is then the
        causal mask over [cls, p_1, ..., p_{L-1}] (no query reads the last patch), and the query mask is the causal mask
        of L queries over the same L keys. The first segment is predicted from the class token alone.
        """
        content_BND = self._with_cls(gather_rows(self._patches(images_BCHW), order_BL[:, : self.content_patches]))
        query_BLD = self.pos_embed[0, 1:][order_BL]
        if self.skip_weights:
            query_BLD = self._with_skips(content_BND, query_BLD)
        else:
            for depth, block in enumerate(self.blocks, start=1):
                content_BND = self._run(block, content_BND, self.content_mask, self.training)
                if depth % self.read_every == 0:
                    query_block = self.query_blocks[depth // self.read_every - 1]
                    query_BLD = self._run(query_block, query_BLD, content_BND, self.query_mask, self.training)
        predictions_BLP = self.prediction_head(self.norm(query_BLD))
        return Prediction(gather_rows(predictions_BLP, order_BL.argsort(1)))

    def _with_skips(self, content_BND: Tensor, query_BLD: Tensor) -> Tensor:
        """The query stream (B, L, D) if its blocks read learned sums of all states of the content stream."""
        states = []
        for block in self.blocks:
            content_BND = self._run(block, content_BND, self.content_mask, self.training)
            states.append(content_BND)
        for weights, query_block in zip(self.skip_weights, self.query_blocks, strict=True):
            read_BND = sum(weight * state_BND for weight, state_BND in zip(weights, states, strict=True))
            query_BLD = self._run(query_block, query_BLD, read_BND, self.query_mask, self.training)
        return query_BLD
