"""How good an order of patches is, and the semantic map it follows: numbers per image.

SemAIM's claim is that its orders start on the object (arXiv 2312.10457, section 3.2). Where it is known which patches
are object, the share of them among the first says whether they do, and the share among all is what an order by chance
gives.

Shapes: B images, L = h * w patches of a grid (h, w), raster index. Every function returns float32 (B,). NaN stands for
an image of which nothing can be said: average with `nanmean`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from semaim.permutations import Grid, coordinates, ranks

FIRST = 4  # the first quarter of an order, rounded up to whole patches


def order_metrics(
    grid: Grid,
    order_BL: Tensor,
    semantic_map_BL: Tensor | None = None,
    object_BL: Tensor | None = None,
    previous_order_BL: Tensor | None = None,
) -> dict[str, Tensor]:
    """All numbers that can be told of some images, by name.

    Args:
        grid: rows and columns of patches.
        order_BL: their orders.
        semantic_map_BL: what the orders follow, if they follow anything.
        object_BL: bool, which patches are object, if that is known; see `semaim.data.object_patches.object_patches`.
        previous_order_BL: earlier orders of the same images, if there were any.

    Returns:
        `map_entropy` and `map_peak_from_centre` where there is a map, `object_in_first_quarter` and `object_in_image`
        where objects are known, `order_agreement` where there are earlier orders.
    """
    found = {}
    if semantic_map_BL is not None:
        found["map_entropy"] = entropy(semantic_map_BL)
        found["map_peak_from_centre"] = peak_from_centre(semantic_map_BL, grid)
    if object_BL is not None:
        found["object_in_first_quarter"] = object_in_first_quarter(order_BL, object_BL)
        found["object_in_image"] = object_in_image(object_BL)
    if previous_order_BL is not None:
        found["order_agreement"] = agreement(order_BL, previous_order_BL)
    return found


def means(quality: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each number over the images it can be told of; numbers that can be told of none are left out."""
    return {name: float(value_B.nanmean()) for name, value_B in quality.items() if not value_B.isnan().all()}


def entropy(semantic_map_BL: Tensor) -> Tensor:
    """Entropy of a map over its largest value, log L: 1 where all patches are equal, 0 where one has everything.

    Rows need not sum to 1 (attention from the class token leaves out what it pays to itself): they are made to.
    """
    share_BL = semantic_map_BL.double()
    share_BL = share_BL / share_BL.sum(1, keepdim=True)
    return (torch.special.entr(share_BL).sum(1) / math.log(share_BL.shape[1])).float()


def peak_from_centre(semantic_map_BL: Tensor, grid: Grid) -> Tensor:
    """Distance of a map's highest patch from the centre of the image, in units of half the image's diagonal.

    0 is the centre and 1 a corner of the image, so a patch in the corner is a little nearer. Of patches all over a
    square image the mean is about 0.54.
    """
    rows_L, columns_L = coordinates(grid, semantic_map_BL.device)
    from_centre_L = torch.hypot(rows_L - (grid[0] - 1) / 2, columns_L - (grid[1] - 1) / 2)
    return from_centre_L[semantic_map_BL.argmax(1)] / (math.hypot(*grid) / 2)


def agreement(order_BL: Tensor, other_BL: Tensor) -> Tensor:
    """Spearman's rank correlation of two orders of the same images: 1 the same, 0 unrelated, -1 reversed."""
    patches = order_BL.shape[1]
    squared_B = (ranks(order_BL) - ranks(other_BL)).double().square().sum(1)
    return (1 - 6 * squared_B / (patches * (patches**2 - 1))).float()


def object_in_first_quarter(order_BL: Tensor, object_BL: Tensor) -> Tensor:
    """Share of object among the first quarter of the patches predicted (rounded up); NaN for images without object."""
    first_BK = order_BL[:, : -(-order_BL.shape[1] // FIRST)]
    return _where_object(object_BL, object_BL.gather(1, first_BK).float().mean(1))


def object_in_image(object_BL: Tensor) -> Tensor:
    """Share of object among all patches, which a random order has in its first quarter, on average; NaN likewise."""
    return _where_object(object_BL, object_BL.float().mean(1))


def _where_object(object_BL: Tensor, value_B: Tensor) -> Tensor:
    return value_B.masked_fill(~object_BL.any(1), float("nan"))
