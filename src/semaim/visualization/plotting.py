"""Figures of orders, maps and reconstructions as PNG and SVG, and animations of patches appearing in their order.

The colour map is perceptually uniform and readable with colour blindness: warm is high, or predicted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from semaim.core.files import atomic
from semaim.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
DPI = 150
LABEL_CHARACTERS = 28  # of a label in a panel
LEGENDS = {
    "order": ("predicted last", "predicted first"),
    "map": ("low", "high (each map by itself)"),
    "error": ("small error", "large error (all alike)"),
}


@dataclass(frozen=True)
class Panel:
    """One panel of a figure.

    Attributes:
        values: an image (height, width, 3) in [0, 1], or values per patch (h, w).
        kind: "image"; "map", scaled from its own minimum to its own maximum; "order", the step of each patch; or
            "error", on one scale for the whole figure.
        label: written into it, such as the name of a file.
    """

    values: Array
    kind: Literal["image", "map", "order", "error"] = "image"
    label: str = ""


def check_palette(name: str, option: str) -> None:
    """Raise UserError if matplotlib has no colour map of this name, which is the value of an option."""
    from matplotlib import colormaps

    if name not in colormaps:
        raise UserError(f"{option}={name} is no colour map of matplotlib's: choose cividis or viridis, say")


def grid_figure(
    rows: Sequence[Sequence[Panel]],
    titles: Sequence[str],
    groups: Sequence[tuple[str, int]],
    palette: str,
    row_names: Sequence[str] = (),
    caption: str = "",
) -> Figure:
    """A figure with a row of panels for each image.

    Args:
        rows: panels, as many in each row as there are titles.
        titles: of the columns.
        groups: headings above columns, each with the number of columns it spans; "" for none.
        palette: matplotlib's name of the colour map.
        row_names: labels of the rows, if any.
        caption: below the figure.
    """
    from matplotlib.figure import Figure

    side = 1.5 if len(rows) <= 4 else 1.1  # inches
    height, width = rows[0][0].values.shape[:2]
    cell = side * height / width
    kinds = [kind for kind in LEGENDS if any(panel.kind == kind for row in rows for panel in row)]
    top, bottom = 0.35 + 0.3 * bool(groups), 0.6 if kinds else 0.1
    left = 0.3 if row_names else 0.1
    size = side * len(titles) + left + 0.1, cell * len(rows) + top + bottom
    figure = Figure(figsize=size, layout=None)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    figure.subplots_adjust(
        left=left / size[0],
        right=1 - 0.1 / size[0],
        top=1 - top / size[1],
        bottom=bottom / size[1],
        wspace=0.06,
        hspace=0.06,
    )
    largest_error = max(
        (float(np.nanmax(panel.values)) for row in rows for panel in row if panel.kind == "error"), default=1.0
    )
    for axes, panel in ((grid[i, j], panel) for i, row in enumerate(rows) for j, panel in enumerate(row)):
        _draw(axes, panel, palette, largest_error)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8, pad=3)
    for axes, name in zip(grid[:, 0], row_names, strict=False):
        axes.text(-0.04, 0.5, name, rotation=90, ha="right", va="center", fontsize=8, transform=axes.transAxes)
    _headings(figure, grid[0], groups)
    _legend(figure, kinds, palette, size)
    figure.text(0.1 / size[0], 0.04 / size[1], caption, fontsize=6, color="dimgray")
    return figure


def _headings(figure: Figure, axes: Any, groups: Sequence[tuple[str, int]]) -> None:
    """Headings above the columns, one line higher than their titles."""
    first, height = 0, 1 - 0.2 / figure.get_figheight()
    for name, span in groups:
        middle = (axes[first].get_position().x0 + axes[first + span - 1].get_position().x1) / 2
        figure.text(middle, height, name, ha="center", va="center", fontsize=8, weight="bold")
        first += span


def _draw(axes: Any, panel: Panel, palette: str, largest_error: float) -> None:
    axes.set_axis_off()
    if panel.kind == "image":
        axes.imshow(panel.values, interpolation="nearest", aspect="auto")
        _label(axes, panel.label)
        return
    values, low, high = panel.values.astype(float), float(panel.values.min()), float(panel.values.max())
    if panel.kind == "order":
        values, low, high = -values, -high, -low  # warm is first
    elif panel.kind == "error":
        low, high = 0.0, largest_error
    axes.imshow(values, cmap=palette, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    if panel.kind == "order":
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        axes.plot(column, row, "o", color="white", markeredgecolor="black", markersize=3.5, markeredgewidth=0.6)


def _label(axes: Any, text: str) -> None:
    """Write into a panel, in white with a dark edge, which is readable on any image."""
    from matplotlib.patheffects import withStroke

    short = text if len(text) <= LABEL_CHARACTERS else f"…{text[1 - LABEL_CHARACTERS :]}"
    edge = [withStroke(linewidth=1.2, foreground="black")]
    axes.text(
        0.03, 0.03, short, fontsize=5, color="white", path_effects=edge, transform=axes.transAxes, parse_math=False
    )


def _legend(figure: Figure, kinds: Sequence[str], palette: str, size: tuple[float, float]) -> None:
    """A colour bar for each kind of panel, with labels at its ends."""
    width = 1 / max(1, len(kinds))
    for index, kind in enumerate(kinds):
        strip = figure.add_axes((index * width + 0.1 / size[0], 0.32 / size[1], width - 0.2 / size[0], 0.1 / size[1]))
        strip.imshow(np.linspace(0, 1, 256)[None], cmap=palette, aspect="auto")
        strip.set_axis_off()
        low, high = LEGENDS[kind]
        start = " (dot)" if kind == "order" else ""
        for x, text, side in ((0.0, low, "left"), (1.0, high + start, "right")):
            strip.text(x, -0.4, text, ha=side, va="top", fontsize=7, transform=strip.transAxes)


def save_figure(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure to `path` with the suffix of each format; returns the files."""
    from matplotlib import rc_context

    files = [path.with_suffix(f".{kind}") for kind in formats]
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, kind in zip(files, formats, strict=True):
        with rc_context({"svg.hashsalt": "semaim"}), atomic(file) as stream:
            figure.savefig(stream, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return files


def animation(frames_TBHWC: Sequence[Array], path: Path) -> None:
    """Write an animated GIF of images side by side, with colours in [0, 1]: six seconds, and two for the last frame."""
    from PIL import Image

    scale = max(1, round(128 / frames_TBHWC[0].shape[2]))
    pictures = []
    for images_BHWC in frames_TBHWC:
        line = np.concatenate([np.pad(each, ((2, 2), (2, 2), (0, 0)), constant_values=1.0) for each in images_BHWC], 1)
        picture = Image.fromarray((line * 255).round().astype(np.uint8))
        pictures.append(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST))
    milliseconds = [round(6000 / len(pictures))] * (len(pictures) - 1) + [2000]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
