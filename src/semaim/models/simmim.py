"""Simple masked image modelling: a ViT sees all places, the last of the order as a mask token, and a linear head.

Shapes: B images, C channels, (h, w) grid, L = h * w patches, D width, P target channels, U patches of a mask unit.
`order_BL[b, t]` is the raster index of the patch at place t.

Reference: SimMIM (arXiv 2111.09886), section 3; with a random order and units of 32 pixels its masks are the paper's.
Its ViT differs: it has a learned relative position bias that all blocks share, no absolute positions, and LayerScale of
0.1; this one is the plain ViT with fixed positions of the other models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from semaim.errors import UserError
from semaim.models.layers import xavier_init
from semaim.models.predictor import Prediction, Predictor, Stream


class SimMIM(Predictor):
    """Masked image model with a linear head.

    Args:
        out_channels: P, channels predicted per patch (given by the target).
        image_size: pixels, one number or (height, width); divisible by the patch size.
        patch_size: pixels per side of a patch.
        embed_dim: D.
        depth: blocks of the encoder.
        num_heads: attention heads; divides embed_dim.
        hidden: share of the order, from its end, that a mask token replaces; rounded up to mask units.
        mask_unit: pixels per side of a mask unit, whose patches are hidden together; None for single patches. Units
            follow each other in the order of their first patches.
        mlp_ratio: hidden width of the MLPs over D.
        drop_path: stochastic depth rate of the last block, growing linearly from 0 at the first.

    Raises:
        UserError: if the sizes do not fit each other, or no patch is visible, or none is hidden.
    """

    unit_L: Tensor

    def __init__(
        self,
        out_channels: int,
        image_size: int | tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        hidden: float = 0.6,
        mask_unit: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(image_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, drop_path)
        self._set_units(hidden, patch_size if mask_unit is None else mask_unit)
        self.architecture |= {
            "model": "simmim", "out_channels": out_channels, "hidden": hidden, "mask_unit": mask_unit
        }  # fmt: skip
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.norm = self._make_norm()
        self.prediction_head = nn.Linear(embed_dim, out_channels)
        self.apply(xavier_init)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def _set_units(self, hidden: float, mask_unit: int) -> None:
        """Set the mask unit of each patch, and how many units are hidden."""
        if mask_unit < 1 or any(side % mask_unit for side in self.image_size) or mask_unit % self.patch_size:
            raise UserError(
                f"model.mask_unit={mask_unit} must be a multiple of the patch size {self.patch_size} that divides the "
                f"image size {self.image_size[0]}x{self.image_size[1]}"
            )
        side = mask_unit // self.patch_size
        index_L = torch.arange(self.grid[0] * self.grid[1])
        rows_L, columns_L = index_L // self.grid[1], index_L % self.grid[1]
        self.register_buffer("unit_L", rows_L // side * (self.grid[1] // side) + columns_L // side, persistent=False)
        self.units = self.grid[0] * self.grid[1] // side**2
        self.hidden_units = math.ceil(hidden * self.units - 1e-6)
        if not 1 <= self.hidden_units < self.units:
            what = "no patch to see" if self.hidden_units > 0 else "no patch to predict"
            raise UserError(
                f"model.hidden={hidden:g} of {self.units} mask units of {mask_unit} pixels leaves {what}: choose a "
                f"share above 0 and up to {1 - 1 / self.units:.2g}"
            )

    @property
    def streams(self) -> list[Stream]:
        """The encoder."""
        return [Stream(self.blocks, 1 + self.grid[0] * self.grid[1])]

    def forward(self, images_BCHW: Tensor, order_BL: Tensor) -> Prediction:
        """Predict all patches from those that are not hidden; the hidden ones count."""
        hidden_BL = self.hidden_patches(order_BL)
        embedded_BLD = self.patch_embed(images_BCHW)
        mask_token = self.mask_token.to(embedded_BLD.dtype)
        embedded_BLD = torch.where(hidden_BL[..., None], mask_token, embedded_BLD)
        tokens_BND = self._with_cls(embedded_BLD + self.pos_embed[:, 1:])
        for block in self.blocks:
            tokens_BND = self._run(block, tokens_BND, False, self.training)
        predictions_BLP = self.prediction_head(self.norm(tokens_BND)[:, 1:])
        return Prediction(predictions_BLP, hidden_BL)

    def hidden_patches(self, order_BL: Tensor) -> Tensor:
        """The patches that the mask token replaces, bool (B, L): those of the last mask units."""
        rank_BL = order_BL.argsort(1)
        unit_BL = self.unit_L.expand_as(rank_BL)
        first_BU = rank_BL.new_full((len(rank_BL), self.units), rank_BL.shape[1])
        first_BU = first_BU.scatter_reduce(1, unit_BL, rank_BL, "amin")
        hidden_BU = first_BU.argsort(1).argsort(1) >= self.units - self.hidden_units
        return hidden_BU.gather(1, unit_BL)
