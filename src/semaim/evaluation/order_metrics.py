"""Quality metrics of patch orders and of the semantic maps they follow, per image.

SemAIM claims that its orders start on the object (arXiv 2312.10457, section 3.2). Where the object patches are known,
their share among the first patches tests this claim; their share among all patches is the expectation of a random
order.

Shapes: B images, L = h * w patches of a grid (h, w), raster index. Every function returns float32 (B,). NaN marks an
image for which the metric is undefined: average with `nanmean`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from semaim.permutations import Grid, coordinates, ranks

QUARTER = 4  # divisor; the first quarter of an order is rounded up to whole patches


def order_metrics(
    grid: Grid,
    order_BL: Tensor,
    semantic_map_BL: Tensor | None = None,
    object_BL: Tensor | None = None,
    previous_order_BL: Tensor | None = None,
) -> dict[str, Tensor]:
    """All metrics that these inputs allow, by name.

    Args:
        grid: rows and columns of patches.
        order_BL: orders of the images.
        semantic_map_BL: maps that the orders follow, if any.
        object_BL: bool, object patches, if known; see `semaim.data.object_patches.object_patches`.
        previous_order_BL: earlier orders of the same images, if any.

    Returns:
        `map_entropy` and `map_peak_from_centre` with a map, `object_in_first_quarter` and `object_in_image` with
        objects, `order_agreement` with earlier orders.
    """
    metrics = {}
    if semantic_map_BL is not None:
        metrics["map_entropy"] = entropy(semantic_map_BL)
        metrics["map_peak_from_centre"] = peak_from_centre(semantic_map_BL, grid)
    if object_BL is not None:
        metrics["object_in_first_quarter"] = object_in_first_quarter(order_BL, object_BL)
        metrics["object_in_image"] = object_in_image(object_BL)
    if previous_order_BL is not None:
        metrics["order_agreement"] = agreement(order_BL, previous_order_BL)
    return metrics


def means(quality: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each metric over the images where it is defined; metrics defined for no image are left out."""
    return {name: float(value_B.nanmean()) for name, value_B in quality.items() if not value_B.isnan().all()}


def entropy(semantic_map_BL: Tensor) -> Tensor:
    """Entropy of a map divided by its maximum, log L: 1 for a uniform map, 0 if one patch has all the weight.

    Rows need not sum to 1 (attention of the class token to itself is left out): they are normalised.
    """
    share_BL = semantic_map_BL.double()
    share_BL = share_BL / share_BL.sum(1, keepdim=True)
    return (torch.special.entr(share_BL).sum(1) / math.log(share_BL.shape[1])).float()


def peak_from_centre(semantic_map_BL: Tensor, grid: Grid) -> Tensor:
    """Distance of a map's highest patch from the centre of the image, in units of half the image's diagonal.

    0 is the centre and 1 a corner of the image; the centre of a corner patch is slightly below 1. The mean over all
    patches of a square image is about 0.54.
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
    """Share of object patches in the first quarter of the order (rounded up); NaN for images without object."""
    first_BK = order_BL[:, : -(-order_BL.shape[1] // QUARTER)]
    return _mask_without_object(object_BL, object_BL.gather(1, first_BK).float().mean(1))


def object_in_image(object_BL: Tensor) -> Tensor:
    """Share of object patches in the image: the expectation for a random order; NaN for images without object."""
    return _mask_without_object(object_BL, object_BL.float().mean(1))


def _mask_without_object(object_BL: Tensor, value_B: Tensor) -> Tensor:
    return value_B.masked_fill(~object_BL.any(1), float("nan"))
