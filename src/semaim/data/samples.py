"""A few images of a set, to look at.

Shapes: B images, C colours, H x W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from semaim.data.folders import UNREADABLE
from semaim.data.image_sets import ImageSet
from semaim.data.transforms import Transform
from semaim.errors import UserError

log = logging.getLogger(__name__)


def chosen(total: int, count: int) -> list[int]:
    """So many numbers of images in ascending order, always the same random ones of a total; or all there are.

    Not evenly spaced ones: where classes take turns, these can be all of one class.
    """
    generator = torch.Generator().manual_seed(total)
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def read_some(images: ImageSet, indices: Sequence[int], transform: Transform) -> tuple[list[int], Tensor]:
    """Those of the indices whose images can be read, and these images, (B, C, H, W); the others are named in the log.

    Raises:
        UserError: if none can be read.
    """
    read: dict[int, Tensor] = {}
    for index in indices:
        try:
            read[index] = transform(images.read(index))
        except UNREADABLE as error:
            log.warning("%s cannot be read (%s): it is not drawn", images.name(index), error)
    if not read:
        raise UserError(f"none of these images can be read: {', '.join(images.name(index) for index in indices[:3])}")
    return list(read), torch.stack(list(read.values()))
