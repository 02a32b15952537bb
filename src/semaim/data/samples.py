"""Small samples of an image set for pictures.

Shapes: B images, C colours, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semaim.data.image_sets import ImageSet, read_image
from semaim.data.pixels import Transform, on_device
from semaim.data.reading import Unreadable, log_unreadable
from semaim.data.transforms import EVALUATION, transformed
from semaim.errors import UserError


def sample_indices(total: int, count: int) -> list[int]:
    """Draw `count` of `total` indices, the same in every call, in ascending order; all if there are fewer.

    Evenly spaced indices could all belong to one class if the classes alternate.
    """
    generator = torch.Generator().manual_seed(total)
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def read_images(
    images: ImageSet, indices: Sequence[int], transform: Transform, told: set[str] | None = None
) -> tuple[list[int], Tensor]:
    """Read images; unreadable ones are logged and skipped.

    Args:
        images, indices: which images.
        transform: applied to each.
        told: names of unreadable images that are logged already (`ImageData.unreadable`).

    Returns:
        the indices of the readable images, and these images, normalised, (B, C, H, W).

    Raises:
        UserError: if no image can be read.
    """
    tensors: dict[int, Tensor] = {}
    for index in indices:
        try:
            image = read_image(images, index)
        except Unreadable as error:
            log_unreadable(images.name(index), str(error), set() if told is None else told)
            continue
        tensors[index] = transformed(transform, image, images.name(index), EVALUATION)
    if not tensors:
        raise UserError(f"none of these images can be read: {', '.join(repr(images.name(i)) for i in indices[:3])}")
    images_BCHW, normalise = torch.stack(list(tensors.values())), on_device(transform)
    return list(tensors), images_BCHW if normalise is None else normalise(images_BCHW)
