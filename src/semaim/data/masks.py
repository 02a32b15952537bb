"""Object masks: which pixels of an image belong to objects.

A mask has one value per pixel of its image: 0 is background, 255 void (unlabelled, as along the borders of Pascal VOC's
objects), every other value object.

Shapes: H x W pixels of an image as read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semaim.core.formatting import plural
from semaim.data.folders import Listing
from semaim.data.reading import reason
from semaim.errors import UserError

log = logging.getLogger(__name__)
BACKGROUND, VOID = 0, 255
MODES = ("1", "L", "P")  # PIL modes of masks: black and white, grey, palette


def mask_names(folder: Path) -> set[str]:
    """Paths of all masks below a folder, relative to it; empty if the folder does not exist."""
    listing = Listing("data.source.masks", lambda name: name.endswith(".png"))
    if not folder.is_dir() or (top := listing.look(folder)) is None:
        return set()
    names = set(listing.below(top))
    if omitted := listing.omissions():
        log.info("data.source.masks=%s: %s%s", top, plural(len(names), "mask"), omitted)
    return names


def read_mask(file: Path, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a mask (height, width) from a PNG file.

    Args:
        file: path of the mask.
        size: height and width of its image.

    Raises:
        UserError: if the mask cannot be read, is a colour image, or differs in size from its image.
    """
    try:
        with Image.open(file) as mask:
            values, mode = np.asarray(mask), mask.mode
    except Exception as error:  # as of images
        raise UserError(
            f"mask {str(file)!r} cannot be read ({reason(error)}): repair or remove it (data.source.masks)"
        ) from error
    if mode not in MODES:
        raise UserError(
            f"mask {str(file)!r} is an image of mode {mode}: a mask has one 8-bit value per pixel, grey or with a "
            f"palette, 0 for background, 255 for void, any other for object (data.source.masks)"
        )
    if values.shape != size:
        raise UserError(
            f"mask {str(file)!r} has {values.shape[1]}x{values.shape[0]} pixels and its image {size[1]}x{size[0]}: a "
            f"mask must have the size of its image, turned as data.source.exif says (data.source.masks)"
        )
    return values.astype(np.uint8)
