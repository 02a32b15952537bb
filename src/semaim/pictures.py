"""Pictures of what models see and predict, put together from `semaim.views` and drawn by `semaim.drawing`.

Shapes: B images, H x W pixels, C colours, (h, w) grid, L = h * w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from semaim.drawing import Panel, grid_figure
from semaim.permutations import Grid
from semaim.views import Colours, Maps, Prediction, appearing, ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
FILM = 8  # moments of a film strip


@dataclass(frozen=True)
class Seen:
    """What one model makes of the images.

    Attributes:
        name: of the model, as a heading.
        maps: attention and semantic map.
        orders: by name, (B, L) each.
        grid: rows and columns of its patches.
    """

    name: str
    maps: Maps
    orders: Mapping[str, Tensor]
    grid: Grid


def orders_figure(images_BHWC: Tensor, seen: Sequence[Seen], palette: str) -> Figure:
    """The figure of SemAIM's paper: each image, and for each model its attention, its semantic map and its orders."""
    rows = []
    for number, image_HWC in enumerate(images_BHWC):
        row = [Panel(image_HWC.numpy())]
        for each in seen:
            maps = (each.maps.attention_BL, each.maps.semantic_BL)
            row += [Panel(on_grid(map_BL[number], each.grid), "map") for map_BL in maps]
            row += [Panel(on_grid(ranks(order)[number], each.grid), "order") for order in each.orders.values()]
        rows.append(row)
    titles = ["image"] + [title for each in seen for title in ("self-attention", "similarity", *each.orders)]
    named = [(each.name, 2 + len(each.orders)) for each in seen] if len(seen) > 1 else []
    return grid_figure(rows, titles, [("", 1), *named] if named else [], palette)


def reconstruction_figure(
    images_BHWC: Tensor, prediction: Prediction, grid: Grid, colours: Colours, palette: str
) -> Figure:
    """Each image, the blurred target, each patch as predicted from those before it, the error, and the order."""
    shown: list[tuple[str, Tensor]] = [("image", images_BHWC)]
    if prediction.target_BCHW is not None and prediction.predicted_BCHW is not None:
        shown += [("target", colours.shown(prediction.target_BCHW))]
        shown += [("predicted", colours.shown(prediction.predicted_BCHW))]
    error_BL, rank_BL = prediction.error_BL, ranks(prediction.order_BL)
    rows = [
        [Panel(each[number].numpy()) for _, each in shown]
        + [Panel(on_grid(error_BL[number], grid), "error"), Panel(on_grid(rank_BL[number], grid), "order")]
        for number in range(len(images_BHWC))
    ]
    return grid_figure(rows, [*(title for title, _ in shown), "error", "order"], [], palette)


def film_figure(images_BCHW: Tensor, prediction: Prediction, patch_size: int, colours: Colours, palette: str) -> Figure:
    """A film strip for each image: its patches appear in their order, and below them what was predicted."""
    patches = prediction.order_BL.shape[1]
    counts = [round(patches * (moment + 1) / FILM) for moment in range(FILM)]
    strips = [moments(images_BCHW, prediction, patch_size, colours, count) for count in counts]
    lines = ["true", "predicted"][: len(strips[0])]
    rows = [
        [Panel(strip[line][number]) for strip in strips]
        for number in range(len(images_BCHW))
        for line in range(len(lines))
    ]
    return grid_figure(rows, [f"{count} of {patches}" for count in counts], [], palette, lines * len(images_BCHW))


def film(images_BCHW: Tensor, prediction: Prediction, patch_size: int, colours: Colours) -> list[Array]:
    """Moments of the images appearing in their order: true patches, and to the right those predicted."""
    patches = prediction.order_BL.shape[1]
    step = max(1, patches // 48)
    return [
        np.concatenate(moments(images_BCHW, prediction, patch_size, colours, count), axis=2)
        for count in [*range(0, patches, step), patches]
    ]


def moments(images_BCHW: Tensor, prediction: Prediction, patch_size: int, colours: Colours, count: int) -> list[Array]:
    """Images with their first patches alone, (B, H, W, C): the true ones, and (for pixels) those predicted."""
    both = [images_BCHW] if prediction.predicted_BCHW is None else [images_BCHW, prediction.predicted_BCHW]
    return [colours.shown(appearing(each, prediction.order_BL, patch_size, count)).numpy() for each in both]


def on_grid(values_L: Tensor, grid: Grid) -> Array:
    """Numbers per patch as rows and columns."""
    found: Array = values_L.float().cpu().numpy().reshape(grid)
    return found
