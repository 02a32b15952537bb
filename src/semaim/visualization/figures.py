"""Figures of maps, orders and predictions: `views` in this package computes the tensors, `plotting` draws them.

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
from semaim.visualization.views import Colours, Maps, Prediction, reveal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
FILM_FRAMES = 8  # of a film strip


@dataclass(frozen=True)
class ModelView:
    """Maps and orders of one model for the images of a figure.

    Attributes:
        name: of the model, as a heading.
        maps: attention and semantic map.
        orders: by name, (B, L) each.
        grid: rows and columns of the model's patches.
    """

    name: str
    maps: Maps
    orders: Mapping[str, Tensor]
    grid: Grid


def orders_figure(images_BHWC: Tensor, views: Sequence[ModelView], palette: str) -> Figure:
    """The figure of SemAIM's paper: each image, and for each model its attention, its semantic map and its orders."""
    columns = [_view_columns(view) for view in views]
    named = [(view.name, len(view_columns)) for view, view_columns in zip(views, columns, strict=True)]
    groups = [("", 1), *named] if len(views) > 1 else []
    return _figure(
        [_image(images_BHWC), *(column for view_columns in columns for column in view_columns)], groups, palette
    )


def reconstruction_figure(
    images_BHWC: Tensor, prediction: Prediction, grid: Grid, colours: Colours, palette: str
) -> Figure:
    """Each image, the blurred target, each patch predicted from those before it, the error, and the order."""
    order = _order("order", prediction.order_BL, grid)
    return _figure([_image(images_BHWC), *_predicted(prediction, grid, colours), order], [], palette)


def overview_figure(
    images_BHWC: Tensor, view: ModelView, prediction: Prediction, colours: Colours, palette: str
) -> Figure:
    """Each image with maps, orders and predictions of one model."""
    return _figure(
        [_image(images_BHWC), *_view_columns(view), *_predicted(prediction, view.grid, colours)], [], palette
    )


Column = tuple[str, list[Panel]]  # a title, and a panel for each image


def _figure(columns: Sequence[Column], groups: Sequence[tuple[str, int]], palette: str) -> Figure:
    rows = list(zip(*(panels for _, panels in columns), strict=True))
    return grid_figure(rows, [title for title, _ in columns], groups, palette)


def _image(images_BHWC: Tensor, title: str = "image") -> Column:
    return title, [Panel(image_HWC.numpy()) for image_HWC in images_BHWC]


def _order(name: str, order_BL: Tensor, grid: Grid) -> Column:
    return name, [Panel(to_grid(rank_L, grid), "order") for rank_L in ranks(order_BL)]


def _view_columns(view: ModelView) -> list[Column]:
    """Maps and orders; a single map if the semantic map is the attention."""
    maps = {"self-attention": view.maps.attention_BL}
    if not torch.equal(view.maps.attention_BL, view.maps.semantic_BL):
        maps["similarity"] = view.maps.semantic_BL
    return [
        *((name, [Panel(to_grid(map_L, view.grid), "map") for map_L in map_BL]) for name, map_BL in maps.items()),
        *(_order(name, order_BL, view.grid) for name, order_BL in view.orders.items()),
    ]


def _predicted(prediction: Prediction, grid: Grid, colours: Colours) -> list[Column]:
    """Target and prediction, if they are pixels, and the error."""
    columns = []
    if prediction.target_BCHW is not None and prediction.predicted_BCHW is not None:
        columns += [_image(colours.denormalise(prediction.target_BCHW), "target")]
        columns += [_image(colours.denormalise(prediction.predicted_BCHW), "predicted")]
    return [*columns, ("error", [Panel(to_grid(error_L, grid), "error") for error_L in prediction.error_BL])]


def film_figure(images_BCHW: Tensor, prediction: Prediction, patch_size: int, colours: Colours, palette: str) -> Figure:
    """A film strip for each image: patches appear in their order, with the predicted patches below."""
    patches = prediction.order_BL.shape[1]
    counts = [round(patches * (frame + 1) / FILM_FRAMES) for frame in range(FILM_FRAMES)]
    strips = [partial_images(images_BCHW, prediction, patch_size, colours, count) for count in counts]
    lines = ["true", "predicted"][: len(strips[0])]
    rows = [
        [Panel(strip[line][index]) for strip in strips]
        for index in range(len(images_BCHW))
        for line in range(len(lines))
    ]
    return grid_figure(rows, [f"{count} of {patches}" for count in counts], [], palette, lines * len(images_BCHW))


def film_frames(images_BCHW: Tensor, prediction: Prediction, patch_size: int, colours: Colours) -> list[Array]:
    """Frames in which patches appear in their order: true patches on the left, predicted ones on the right."""
    patches = prediction.order_BL.shape[1]
    step = max(1, patches // 48)
    return [
        np.concatenate(partial_images(images_BCHW, prediction, patch_size, colours, count), axis=2)
        for count in [*range(0, patches, step), patches]
    ]


def partial_images(
    images_BCHW: Tensor, prediction: Prediction, patch_size: int, colours: Colours, count: int
) -> list[Array]:
    """Images with only their first `count` patches, (B, H, W, C): true and (for pixels) predicted patches."""
    versions = [images_BCHW] if prediction.predicted_BCHW is None else [images_BCHW, prediction.predicted_BCHW]
    return [colours.denormalise(reveal(each, prediction.order_BL, patch_size, count)).numpy() for each in versions]


def to_grid(values_L: Tensor, grid: Grid) -> Array:
    """Values per patch as rows and columns."""
    values: Array = values_L.float().cpu().numpy().reshape(grid)
    return values
