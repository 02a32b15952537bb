"""Prediction orders: one small class per order.

Shapes: B images, L = h * w patches of a grid (h, w), raster index i = row * w + column. Every permutation returns
`order_BL`, long: order[b, t] is the raster index of the patch predicted at step t.

An order is defined by a priority per patch (smallest first). Ties are broken at random, so the order is strict: no two
patches are predicted at the same step. All randomness of an image comes from one row of uniform noise, so several
processes draw the same orders as a single process (`Permutation.order`).

References: SemAIM (arXiv 2312.10457), section 3.2; SAIM (arXiv 2212.01610) for the random order. The authors' code
swaps two names: its `raster` is the boustrophedon and its `zigzag` the plain row order. This module uses the usual
meanings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from semaim.errors import UserError
from semaim.models.segments import segment_sizes

Grid = tuple[int, int]


class Permutation(ABC):
    """A prediction order of patches. Subclasses define `priority`."""

    needs_map: bool = False
    """Whether the order follows a semantic map, which the caller passes."""

    @abstractmethod
    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        """Priority of each patch, small first.

        Args:
            grid: rows and columns.
            noise_BK: uniform in [0, 1), K = L + 1. Columns 0..L-1 break ties; column L is available to the subclass.
            semantic_map_BL: semantic map; required if `needs_map`.

        Returns:
            (B, L), or (L,) if it is the same for every image.
        """

    def order(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None = None) -> Tensor:
        """The order as a pure function of its noise: (B, L), long. See `__call__` for the arguments."""
        if self.needs_map and semantic_map_BL is None:
            raise UserError(f"{type(self).__name__} follows a semantic map: pass semantic_map_BL")
        patches = grid[0] * grid[1]
        if self.needs_map and semantic_map_BL is not None and semantic_map_BL.shape != (len(noise_BK), patches):
            raise UserError(
                f"the semantic map has shape {tuple(semantic_map_BL.shape)}, expected {(len(noise_BK), patches)} "
                f"(images, patches of a {grid[0]}x{grid[1]} grid)"
            )
        priority = self.priority(grid, noise_BK, semantic_map_BL)
        if priority.shape not in ((patches,), (1, patches), (len(noise_BK), patches)):
            raise UserError(
                f"{type(self).__name__}.priority returned the shape {tuple(priority.shape)}, expected "
                f"{(len(noise_BK), patches)} or {(patches,)} (images, patches of a {grid[0]}x{grid[1]} grid)"
            )
        priority_BL = priority.expand(len(noise_BK), -1)
        shuffled_BL = noise_BK[:, :patches].argsort(dim=1, stable=True)
        return shuffled_BL.gather(1, priority_BL.gather(1, shuffled_BL).argsort(dim=1, stable=True))

    def __call__(
        self,
        grid: Grid,
        batch_size: int,
        semantic_map_BL: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw an order for each image.

        Args:
            grid: rows and columns of patches (h, w).
            batch_size: B.
            semantic_map_BL: required by orders that follow a map, ignored by the others.
            generator: random generator, on any device; default: torch's global one.

        Returns:
            order (B, L), long, on the map's device if there is a map, else on the generator's.

        Raises:
            UserError: if a required map is missing or does not fit the grid.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        noise_BK = torch.rand(batch_size, noise_columns(grid), generator=generator, device=device)
        if semantic_map_BL is not None:
            noise_BK = noise_BK.to(semantic_map_BL.device)
        return self.order(grid, noise_BK, semantic_map_BL)


def noise_columns(grid: Grid) -> int:
    """K, the number of uniform random values per image: one per patch to break ties, plus one."""
    return grid[0] * grid[1] + 1


def coordinates(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, two long tensors (L,)."""
    index_L = torch.arange(grid[0] * grid[1], device=device)
    return index_L // grid[1], index_L % grid[1]


def square_rings(grid: Grid, centre_row_B1: Tensor, centre_column_B1: Tensor) -> Tensor:
    """Square ring of each patch around a centre: 0 the innermost, 3 the outermost.

    Three nested windows cover 1/7, 3/7 and 5/7 of each side (2, 6 and 10 patches at 14). Per axis, a window is
    [c - size/2, c + size/2) around the centre c, shifted to stay inside the grid. A patch belongs to the smallest
    window that contains it, else to the outermost ring. Computed in integers, in units of 1/14 patch.

    The authors' table is for 14x14. Its rows and columns 13 lie in no window, so a centre in them is treated as in 12;
    around rows and columns 2, 9, 10, 11 and 12 its windows differ from these by a patch. Of all pairs of a centre and
    a patch, 9.1 % are in another ring. The rings around the centre of the image are the same.

    Args:
        grid: rows and columns.
        centre_row_B1: rows of the centres in units of half a patch, long.
        centre_column_B1: their columns.

    Returns:
        (B, L), long.
    """
    rows_L, columns_L = coordinates(grid, centre_row_B1.device)
    ring_BL = torch.full((len(centre_row_B1), len(rows_L)), 3, device=rows_L.device)
    for ring, sevenths in ((2, 5), (1, 3), (0, 1)):
        inside_BL = torch.ones_like(ring_BL, dtype=torch.bool)
        for position_L, centre_B1, side in ((rows_L, centre_row_B1, grid[0]), (columns_L, centre_column_B1, grid[1])):
            size = 2 * sevenths * side
            start_B1 = (7 * centre_B1 - size // 2).clamp(0, 14 * side - size)
            inside_BL &= (start_B1 <= 14 * position_L) & (14 * position_L < start_B1 + size)
        ring_BL = torch.where(inside_BL, ring, ring_BL)
    return ring_BL


def _rings_around(grid: Grid, patch_B: Tensor) -> Tensor:
    """Square rings around one patch per image, given by raster index."""
    return square_rings(grid, 2 * (patch_B // grid[1])[:, None], 2 * (patch_B % grid[1])[:, None])


class Raster(Permutation):
    """Row by row, as iGPT and ViT-iGPT. (The authors' code calls this order `zigzag`.)"""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        return torch.arange(grid[0] * grid[1], device=noise_BK.device)


class Zigzag(Permutation):
    """Row by row with the odd rows reversed, the boustrophedon. (The authors' code calls this order `raster`.)"""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        rows_L, columns_L = coordinates(grid, noise_BK.device)
        return rows_L * grid[1] + torch.where(rows_L % 2 == 0, columns_L, grid[1] - 1 - columns_L)


class Stochastic(Permutation):
    """Uniformly random, drawn independently for every image (SAIM)."""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        return torch.zeros(grid[0] * grid[1], device=noise_BK.device)


class Center2Out(Permutation):
    """Random inside square rings around the centre of the image, innermost ring first."""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        # The centre is (side - 1) / 2 as an index of patches. Rings around it are symmetric on every grid.
        row, column = (torch.full((1, 1), side - 1, device=noise_BK.device) for side in grid)
        return square_rings(grid, row, column)


class Out2Center(Center2Out):
    """Random inside square rings around the centre of the image, outermost ring first."""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        return -super().priority(grid, noise_BK, semantic_map_BL)


class StochasticCenter(Permutation):
    """Random inside square rings around a random patch of each image, innermost ring first."""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        patches = grid[0] * grid[1]
        # In float32, noise just below 1 times the number of patches can round up to that number.
        patch_B = (noise_BK[:, patches] * patches).long().clamp(max=patches - 1)
        return _rings_around(grid, patch_B)


class RandomSquares(Permutation):
    """Square by square in random order, random inside of a square (RandSAC's square segments).

    With as many segments as squares, `model.segments`, each square is predicted at once.

    Args:
        side: patches per side of a square; divides the sides of the grid.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        if grid[0] % self.side or grid[1] % self.side:
            raise UserError(
                f"permutation.side={self.side} must divide the {grid[0]}x{grid[1]} patches of an image: choose one of "
                f"{[side for side in range(1, min(grid) + 1) if grid[0] % side == grid[1] % side == 0]}"
            )
        # The largest noise in a square says nothing about which of its patches has it, so both orders are uniform.
        patches = noise_BK[:, : grid[0] * grid[1]].unflatten(1, grid)
        largest_BS = patches.unfold(1, self.side, self.side).unfold(2, self.side, self.side).amax((-1, -2)).flatten(1)
        rows_L, columns_L = coordinates(grid, noise_BK.device)
        square_L = rows_L // self.side * (grid[1] // self.side) + columns_L // self.side
        return largest_BS.argsort(1).argsort(1)[:, square_L]


class RandomBlobs(Permutation):
    """Blob by blob, each from its centre outward (RandSAC's blob segments).

    A blob is a random patch, its centre, and those nearest to it that are in no blob yet. The sizes are those of
    `model.segments` parts, so that with as many segments each blob is predicted at once. The last blobs are made of
    what is left.

    Args:
        blobs: their number, up to that of the patches.
    """

    def __init__(self, blobs: int) -> None:
        self.blobs = blobs

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        patches = grid[0] * grid[1]
        if self.blobs > patches:
            raise UserError(f"permutation.blobs={self.blobs} must be at most the {patches} patches of an image")
        rows_L, columns_L = coordinates(grid, noise_BK.device)
        free_BL = torch.ones_like(noise_BK[:, :patches], dtype=torch.bool)
        priority_BL = torch.zeros_like(free_BL, dtype=torch.long)
        farthest = grid[0] ** 2 + grid[1] ** 2
        for blob, size in enumerate(segment_sizes(patches, self.blobs)):
            centre_B1 = noise_BK[:, :patches].masked_fill(~free_BL, 2.0).argmin(1, keepdim=True)
            distance_BL = (rows_L - centre_B1 // grid[1]) ** 2 + (columns_L - centre_B1 % grid[1]) ** 2
            # Integers and at most a half, so that noise decides between equal distances only.
            near_BL = (distance_BL + noise_BK[:, :patches] / 2).masked_fill(~free_BL, float("inf"))
            chosen_BS = near_BL.argsort(dim=1, stable=True)[:, :size]
            priority_BL.scatter_(1, chosen_BS, blob * farthest + distance_BL.gather(1, chosen_BS))
            free_BL.scatter_(1, chosen_BS, False)
        return priority_BL


class Attention(Permutation):
    """By the semantic map itself, highest first: the "similarity order"."""

    needs_map = True

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        assert semantic_map_BL is not None
        return -semantic_map_BL


class AttentionReversed(Attention):
    """By the semantic map itself, lowest first: the least semantic patches are seen before the others."""

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        return -super().priority(grid, noise_BK, semantic_map_BL)


class AttentionGuided(Permutation):
    """Random inside square rings around the most semantic patch, innermost ring first."""

    needs_map = True

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        assert semantic_map_BL is not None
        return _rings_around(grid, semantic_map_BL.argmax(1))


class AttentionCenter(Permutation):
    """By Euclidean distance to the most semantic patch, near first, equal distances in random order (SemAIM)."""

    needs_map = True

    def priority(self, grid: Grid, noise_BK: Tensor, semantic_map_BL: Tensor | None) -> Tensor:
        assert semantic_map_BL is not None
        rows_L, columns_L = coordinates(grid, noise_BK.device)
        centre_B1 = semantic_map_BL.argmax(1, keepdim=True)
        # Squared distances are integers, so equal distances are exactly equal.
        return (rows_L - centre_B1 // grid[1]) ** 2 + (columns_L - centre_B1 % grid[1]) ** 2


def ranks(order_BL: Tensor) -> Tensor:
    """The step at which each patch is predicted, (B, L) long: the inverse of an order."""
    return order_BL.argsort(dim=1)
