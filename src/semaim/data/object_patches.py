"""Object patches of images, from their masks.

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
from semaim.data.pixels import Transform, size_of
from semaim.data.transforms import on_mask


def object_share(mask_HW: np.ndarray[Any, Any], transform: Transform, patch_size: int) -> Tensor:
    """Share of object pixels in every patch of an image; its mask is resized and cropped like the image.

    Args:
        mask_HW: mask of the image as read.
        transform: evaluation transform of the image.
        patch_size: pixels per side of a patch.

    Returns:
        (h, w): object pixels over non-void pixels; 0 where all pixels are void.
    """
    mask = on_mask(transform, mask_HW)
    height, width = mask.shape
    patches = mask.view(height // patch_size, patch_size, width // patch_size, patch_size)
    labelled = (patches != VOID).sum((1, 3))
    objects = ((patches != BACKGROUND) & (patches != VOID)).sum((1, 3))
    return objects / labelled.clamp(min=1)


def object_patches(images: ImageSet, indices: Sequence[int], transform: Transform, patch_size: int) -> Tensor:
    """Object patches of images: those with at least half object pixels, without counting void.

    Args:
        images: an image set.
        indices: indices of the images.
        transform, patch_size: see `object_share`.

    Returns:
        bool (B, L); all False for an image without a mask.

    Raises:
        UserError: if a mask cannot be read, or differs in size from its image.
    """
    shares = [object_share(_mask(images, index), transform, patch_size) for index in indices]
    return torch.stack(shares).flatten(1) >= 0.5


def _mask(images: ImageSet, index: int) -> np.ndarray[Any, Any]:
    """The mask of an image; all void if it has none."""
    mask = images.mask(index)
    return np.full(size_of(images.read(index)), VOID, np.uint8) if mask is None else mask
