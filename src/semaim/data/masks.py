"""Masks of objects: which pixels of an image, and which of its patches, are object.

A mask has a number per pixel of its image: 0 is background, 255 void (unlabelled, as along the borders of Pascal VOC's
objects), everything else object.

Shapes: B images, H x W pixels of an image as read, (h, w) grid, L = h * w patches, raster index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semaim.data.folders import UNREADABLE, images_below
from semaim.data.transforms import Transform, on_mask
from semaim.errors import UserError

if TYPE_CHECKING:
    from semaim.data.sources import ImageSet

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


def object_share(mask_HW: np.ndarray[Any, Any], transform: Transform, patch_size: int) -> Tensor:
    """Share of object in every patch of an image, when its mask is resized and cropped as the image is.

    Args:
        mask_HW: mask of the image as read.
        transform: what the image is prepared with for evaluation.
        patch_size: pixels per side of a patch.

    Returns:
        (h, w): object pixels over pixels that are not void; 0 where all are void.
    """
    mask = on_mask(transform, mask_HW)
    height, width = mask.shape
    cut = mask.view(height // patch_size, patch_size, width // patch_size, patch_size)
    labelled = (cut != VOID).sum((1, 3))
    found = ((cut != BACKGROUND) & (cut != VOID)).sum((1, 3))
    return found / labelled.clamp(min=1)


def object_patches(images: ImageSet, indices: Sequence[int], transform: Transform, patch_size: int) -> Tensor:
    """Which patches of some images are object: those of which at least half is, void left out.

    Args:
        images: a set of images.
        indices: which of them.
        transform, patch_size: see `object_share`.

    Returns:
        bool (B, L); all False for an image that has no mask.

    Raises:
        UserError: if a mask cannot be read, or has not the size of its image.
    """
    shares = [object_share(_mask(images, index), transform, patch_size) for index in indices]
    return torch.stack(shares).flatten(1) >= 0.5


def _mask(images: ImageSet, index: int) -> np.ndarray[Any, Any]:
    """The mask of an image, of which without one nothing is known."""
    mask = images.mask(index)
    return np.full(images.read(index).size[::-1], VOID, np.uint8) if mask is None else mask
