"""Figures of maps, orders and predictions: `views` in this package computes the tensors, `plotting` draws them.

Shapes: B images, H x W pixels, C colours, (h, w) grid, L = h * w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from semaim.permutations import Grid, ranks
from semaim.visualization.plotting import Panel, grid_figure
from semaim.visualization.views import Colours, Maps, PredictedImages, reveal, without

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


@dataclass(frozen=True)
class Shown:
    """Images of a figure.

    Attributes:
        images_BHWC: with colours in [0, 1].
        names: of their files.
        caption: which images these are, such as "8 of 360 held-out images".
    """

    images_BHWC: Tensor
    names: Sequence[str]
    caption: str


def orders_figure(shown: Shown, views: Sequence[ModelView], palette: str) -> Figure:
    """The figure of SemAIM's paper: each image, and for each model its attention, its semantic map and its orders."""
    columns, groups = [_named(shown)], [("", 1)]
    for view in views:
        own = _view_columns(view)
        columns += own
        groups.append((view.name, len(own)))
    return _figure(columns, groups if len(views) > 1 else [], palette, shown.caption)


def reconstruction_figure(
    shown: Shown, prediction: PredictedImages, grid: Grid, colours: Colours, palette: str
) -> Figure:
    """Each image, the blurred target, the predicted patches, their error, and the order."""
    order = _patches("order", ranks(prediction.order_BL), grid, "order")
    return _figure([_named(shown), *_predicted(prediction, grid, colours), order], [], palette, shown.caption)


def overview_figure(
    shown: Shown, view: ModelView, prediction: PredictedImages, colours: Colours, palette: str
) -> Figure:
    """Each image with maps, orders and predictions of one model."""
    predicted = _predicted(prediction, view.grid, colours)
    return _figure([_named(shown), *_view_columns(view), *predicted], [], palette, shown.caption)


Column = tuple[str, list[Panel]]  # a title, and a panel for each image


def _figure(columns: Sequence[Column], groups: Sequence[tuple[str, int]], palette: str, caption: str) -> Figure:
    rows = list(zip(*(panels for _, panels in columns), strict=True))
    return grid_figure(rows, [title for title, _ in columns], groups, palette, caption=caption)


def _named(shown: Shown) -> Column:
    """The images with the names of their files."""
    named = zip(shown.images_BHWC, shown.names, strict=True)
    return "image", [Panel(image_HWC.numpy(), label=Path(name).name) for image_HWC, name in named]


def _image(images_BHWC: Tensor, title: str) -> Column:
    return title, [Panel(image_HWC.numpy()) for image_HWC in images_BHWC]


def _patches(title: str, values_BL: Tensor, grid: Grid, kind: Literal["map", "order", "error"]) -> Column:
    return title, [Panel(values_L.float().cpu().numpy().reshape(grid), kind) for values_L in values_BL]


def _view_columns(view: ModelView) -> list[Column]:
    """Maps and orders; a single map if the semantic map is the attention."""
    maps = {"self-attention": view.maps.attention_BL}
    if not torch.equal(view.maps.attention_BL, view.maps.semantic_BL):
        maps["similarity"] = view.maps.semantic_BL
    return [
        *(_patches(name, map_BL, view.grid, "map") for name, map_BL in maps.items()),
        *(_patches(name, ranks(order_BL), view.grid, "order") for name, order_BL in view.orders.items()),
    ]


def _predicted(prediction: PredictedImages, grid: Grid, colours: Colours) -> list[Column]:
    """Target, what the model sees of it unless it predicts all, and prediction, if they are pixels; the error."""
    columns, counted_BL, error_BL = [], prediction.counted_BL, prediction.error_BL
    if prediction.target_BCHW is not None and prediction.predicted_BCHW is not None:
        columns += [_image(colours.denormalise(prediction.target_BCHW), "target")]
        if counted_BL is not None:
            seen_BCHW = without(prediction.target_BCHW, counted_BL, prediction.target_BCHW.shape[-1] // grid[1])
            columns += [_image(colours.denormalise(seen_BCHW), "visible")]
        columns += [_image(colours.denormalise(prediction.predicted_BCHW), "predicted")]
    if counted_BL is not None:
        error_BL = error_BL.masked_fill(~counted_BL, float("nan"))  # drawn as nothing
    return [*columns, _patches("error", error_BL, grid, "error")]


def film_figure(
    images_BCHW: Tensor, prediction: PredictedImages, patch_size: int, colours: Colours, palette: str
) -> Figure:
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


def film_frames(images_BCHW: Tensor, prediction: PredictedImages, patch_size: int, colours: Colours) -> list[Array]:
    """Frames in which patches appear in their order: true patches on the left, predicted ones on the right."""
    patches = prediction.order_BL.shape[1]
    step = max(1, patches // 48)
    return [
        np.concatenate(partial_images(images_BCHW, prediction, patch_size, colours, count), axis=2)
        for count in [*range(0, patches, step), patches]
    ]


def partial_images(
    images_BCHW: Tensor, prediction: PredictedImages, patch_size: int, colours: Colours, count: int
) -> list[Array]:
    """Images with only their first `count` patches, (B, H, W, C): true and (for pixels) predicted patches."""
    versions = [images_BCHW] if prediction.predicted_BCHW is None else [images_BCHW, prediction.predicted_BCHW]
    return [colours.denormalise(reveal(each, prediction.order_BL, patch_size, count)).numpy() for each in versions]
