"""Fixed two-dimensional sine-cosine position embeddings.

Shapes: L patches = h * w of the grid (raster index = row * w + column), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semaim.errors import UserError


def sincos_2d(dim: int, grid: tuple[int, int]) -> Tensor:
    """Position embedding of every patch of a grid.

    The first half of the channels encodes the column, the second half the row ("w first", as in MAE and SemAIM): sines,
    then cosines, at D/4 geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    Args:
        dim: width D, divisible by 4.
        grid: rows and columns (h, w).

    Returns:
        float32 tensor of shape (L, D).

    Raises:
        UserError: if the width is not divisible by 4.
    """
    if dim % 4:
        raise UserError(f"model.embed_dim={dim} must be divisible by 4 for two-dimensional sine-cosine positions")
    h, w = grid
    rows_L = torch.arange(h, dtype=torch.float64).repeat_interleave(w)
    columns_L = torch.arange(w, dtype=torch.float64).repeat(h)
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    x, y = (positions_L[:, None] * frequencies for positions_L in (columns_L, rows_L))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()
