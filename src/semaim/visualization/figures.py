"""Pictures of what models see and predict: `views` in this package gives the numbers, `plotting` draws them.

Shapes: B images, H x W pixels, C colours, (h, w) grid, L = h * w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from semaim.permutations import Grid, ranks
from semaim.visualization.plotting import Panel, grid_figure
from semaim.visualization.views import Colours, Maps, Prediction, appearing

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
    columns = [_seen(each) for each in seen]
    named = [(each.name, len(own)) for each, own in zip(seen, columns, strict=True)]
    groups = [("", 1), *named] if len(seen) > 1 else []
    return _figure([_image(images_BHWC), *(column for own in columns for column in own)], groups, palette)


def reconstruction_figure(
    images_BHWC: Tensor, prediction: Prediction, grid: Grid, colours: Colours, palette: str
) -> Figure:
    """Each image, the blurred target, each patch as predicted from those before it, the error, and the order."""
    order = _order("order", prediction.order_BL, grid)
    return _figure([_image(images_BHWC), *_predicted(prediction, grid, colours), order], [], palette)


def look_figure(images_BHWC: Tensor, seen: Seen, prediction: Prediction, colours: Colours, palette: str) -> Figure:
    """Each image with all that one model makes of it: its maps, its orders, and what it predicts."""
    return _figure([_image(images_BHWC), *_seen(seen), *_predicted(prediction, seen.grid, colours)], [], palette)


Column = tuple[str, list[Panel]]  # a title, and a picture for each image


def _figure(columns: Sequence[Column], groups: Sequence[tuple[str, int]], palette: str) -> Figure:
    rows = list(zip(*(panels for _, panels in columns), strict=True))
    return grid_figure(rows, [title for title, _ in columns], groups, palette)


def _image(images_BHWC: Tensor, title: str = "image") -> Column:
    return title, [Panel(image_HWC.numpy()) for image_HWC in images_BHWC]


def _order(name: str, order_BL: Tensor, grid: Grid) -> Column:
    return name, [Panel(on_grid(rank_L, grid), "order") for rank_L in ranks(order_BL)]


def _seen(seen: Seen) -> list[Column]:
    """Maps and orders; one map where the semantic map is the attention."""
    maps = {"self-attention": seen.maps.attention_BL}
    if not torch.equal(seen.maps.attention_BL, seen.maps.semantic_BL):
        maps["similarity"] = seen.maps.semantic_BL
    return [
        *((name, [Panel(on_grid(map_L, seen.grid), "map") for map_L in map_BL]) for name, map_BL in maps.items()),
        *(_order(name, order_BL, seen.grid) for name, order_BL in seen.orders.items()),
    ]


def _predicted(prediction: Prediction, grid: Grid, colours: Colours) -> list[Column]:
    """The target and what was predicted, where these are pixels, and the error."""
    columns = []
    if prediction.target_BCHW is not None and prediction.predicted_BCHW is not None:
        columns += [_image(colours.shown(prediction.target_BCHW), "target")]
        columns += [_image(colours.shown(prediction.predicted_BCHW), "predicted")]
    return [*columns, ("error", [Panel(on_grid(error_L, grid), "error") for error_L in prediction.error_BL])]


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
