"""Masks of objects: which pixels of an image, and which of its patches, are object.

A mask has a number per pixel of its image: 0 is background, 255 void (unlabelled, as along the borders of Pascal VOC's
objects), everything else object.

Shapes: B images, H x W pixels of an image as read, (h, w) grid, L = h * w patches, raster index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semaim.data.folders import UNREADABLE, images_below
from semaim.errors import UserError

BACKGROUND, VOID = 0, 255
MODES = ("1", "L", "P")  # of images whose numbers are a mask: black and white, grey, palette


def mask_names(folder: Path) -> set[str]:
    """Paths of all masks below a folder, from there; none if there is no such folder."""
    return {file for file in images_below(folder, folder) if file.endswith(".png")}


def read_mask(file: Path, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The mask (height, width) in a PNG file.

    Args:
        file: the mask's.
        size: width and height of its image.

    Raises:
        UserError: if it cannot be read, is of colours, or has not the size of its image.
    """
    try:
        with Image.open(file) as mask:
            numbers, mode = np.asarray(mask), mask.mode
    except UNREADABLE as error:
        raise UserError(f"mask {file} cannot be read ({error}): repair or remove it (data.source.masks)") from error
    if mode not in MODES:
        raise UserError(
            f"mask {file} is an image of mode {mode}: a mask has one number of 8 bits per pixel, in grey or of a "
            f"palette, 0 for background, 255 for void, any other for object (data.source.masks)"
        )
    if numbers.shape != size[::-1]:
        raise UserError(
            f"mask {file} has {numbers.shape[1]}x{numbers.shape[0]} pixels and its image {size[0]}x{size[1]}: a mask "
            f"must be of its image's size (data.source.masks)"
        )
    return numbers.astype(np.uint8)
