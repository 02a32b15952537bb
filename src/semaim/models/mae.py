"""Masked autoencoder: the encoder sees the first patches of the order, a small decoder predicts the others.

Shapes: B images, C channels, (h, w) grid, L = h * w patches, V of them visible, D and E widths of encoder and decoder,
P target channels. `order_BL[b, t]` is the raster index of the patch at place t.

Reference: MAE (arXiv 2111.06377), section 3; with a random order it is MAE. Parameter names equal those of the authors'
code, so that their checkpoints load without renaming.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semaim.errors import UserError
from semaim.models.layers import LAYER_NORM_EPS, Block, gather_rows, xavier_init
from semaim.models.predictor import Prediction, Predictor, Stream, number_of_patches, positions_with_cls


class MAE(Predictor):
    """Masked autoencoder.

    Args:
        out_channels: P, channels predicted per patch (given by the target).
        image_size: pixels, one number or (height, width); divisible by the patch size.
        patch_size: pixels per side of a patch.
        embed_dim: D.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder; divides embed_dim.
        decoder_dim: E.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: attention heads of the decoder; divides decoder_dim.
        visible: share of the order, from its beginning, that the encoder sees; rounded down to patches.
        mlp_ratio: hidden width of the MLPs over D and E.
        drop_path: stochastic depth rate of the encoder's last block, growing linearly from 0 at the first.

    Raises:
        UserError: if the sizes do not fit each other, or no patch is visible, or none is hidden.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        out_channels: int,
        image_size: int | tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        visible: float = 0.25,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(image_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, drop_path)
        if decoder_num_heads < 1 or decoder_dim % decoder_num_heads:
            raise UserError(f"model.decoder_num_heads={decoder_num_heads} must divide model.decoder_dim={decoder_dim}")
        patches = self.grid[0] * self.grid[1]
        self.visible = number_of_patches(visible, patches)
        if not 1 <= self.visible < patches:
            what = "no patch to see" if self.visible < 1 else "no patch to predict"
            raise UserError(
                f"model.visible={visible:g} of {patches} patches leaves {what}: choose a share from {1 / patches:.2g} "
                f"to {1 - 1 / patches:.2g}"
            )
        self.architecture |= {
            "model": "mae",
            "out_channels": out_channels,
            "decoder_dim": decoder_dim,
            "decoder_depth": decoder_depth,
            "decoder_num_heads": decoder_num_heads,
            "visible": visible,
        }
        self.norm = self._make_norm()
        self.decoder_embed = nn.Linear(embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.register_buffer("decoder_pos_embed", positions_with_cls(decoder_dim, self.grid))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_num_heads, mlp_ratio, 0.0) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_dim, out_channels)
        self.apply(xavier_init)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def streams(self) -> list[Stream]:
        """Encoder and decoder."""
        patches = self.grid[0] * self.grid[1]
        return [Stream(self.blocks, 1 + self.visible), Stream(self.decoder_blocks, 1 + patches)]

    def forward(self, images_BCHW: Tensor, order_BL: Tensor) -> Prediction:
        """Predict all patches from the first V of the order; the others count.

        Predictions of visible patches are returned too, as MAE's code does. They learn nothing.
        """
        visible_BVD = gather_rows(self._patches(images_BCHW), order_BL[:, : self.visible])
        tokens_BND = self._with_cls(visible_BVD)
        for block in self.blocks:
            tokens_BND = self._run(block, tokens_BND, False, self.training)
        tokens_BNE = self.decoder_embed(self.norm(tokens_BND))
        rank_BL = order_BL.argsort(1)
        hidden = order_BL.shape[1] - self.visible
        masked = self.mask_token.to(tokens_BNE.dtype).expand(len(tokens_BNE), hidden, -1)
        in_order_BLE = torch.cat([tokens_BNE[:, 1:], masked], dim=1)
        tokens_BNE = torch.cat([tokens_BNE[:, :1], gather_rows(in_order_BLE, rank_BL)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens_BNE = self._run(block, tokens_BNE, False, self.training)
        predictions_BLP = self.decoder_pred(self.decoder_norm(tokens_BNE)[:, 1:])
        return Prediction(predictions_BLP, rank_BL >= self.visible)
