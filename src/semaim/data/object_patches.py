"""Which patches of an image are object, by its mask.

Shapes: B images, H x W pixels of an image as read, (h, w) grid, L = h * w patches, raster index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semaim.data.image_sets import ImageSet
from semaim.data.masks import BACKGROUND, VOID
from semaim.data.transforms import Transform, on_mask


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
