"""What shards hold, to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semaim.data.image_sets import ImageSet, Splits, read_image
from semaim.data.reading import Unreadable
from semaim.data.shards import ShardImages

SIZE = "shard_size=100kB"  # some shards for a few pictures


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def contents(images: ImageSet | None) -> list[Any]:
    """All images of a set: pixels or why there are none, and label."""

    def pixels(index: int) -> tuple[tuple[int, ...], bytes] | str:
        try:
            image = np.asarray(read_image(images, index))  # type: ignore[arg-type]
        except Unreadable as error:
            return type(error).__name__
        return image.shape, image.tobytes()

    assert images is not None
    return [(pixels(index), images.label(index)) for index in range(len(images))]


def part(splits: Splits, name: str = "train") -> ShardImages:
    images = getattr(splits, name)
    assert isinstance(images, ShardImages)
    return images
