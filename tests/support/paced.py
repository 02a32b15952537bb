"""Images with a read delay, so that a test can observe a run in progress.

Jobs import `squares`, as their data source.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from semaim.data.image_sets import ArrayImages, ImageSet, Splits
from support.paths import TESTS

IMAGES = 1797
PACE = "SEMAIM_TEST_PACE"  # names a file with the seconds per image read; no delay if unset
PACED = ("data.source._target_=support.paced.squares",)


class Slow:
    """Images with a read delay."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["images"], name)

    def read(self, index: int) -> Any:
        with suppress(FileNotFoundError, KeyError):
            time.sleep(float(Path(os.environ[PACE]).read_text()))
        return self.images.read(index)


def squares(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """As many images as digits has, of 8x8 random grey squares; training images are read with a delay."""
    held_out = math.ceil(IMAGES * val_fraction)
    grey = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8), np.uint8)
    images_NHWC = np.kron(grey, np.ones((side // 8, side // 8), np.uint8))[..., None].repeat(3, axis=-1)
    labels = [number % 10 for number in range(IMAGES)]
    val = ArrayImages(images_NHWC[:held_out], labels[:held_out], "squares/val")
    train = ArrayImages(images_NHWC[held_out:], labels[held_out:], "squares/train")
    return Splits(Slow(train), train, val, [str(label) for label in range(10)])


def set_pace(file: Path, seconds_per_image: float) -> None:
    """Set the read delay of processes whose environment names this file; none of them sees a half-written one."""
    if seconds_per_image:
        written = file.with_suffix(".new")
        written.write_text(str(seconds_per_image))
        written.replace(file)
    else:
        file.unlink(missing_ok=True)


def import_path() -> dict[str, str]:
    """Environment that lets the processes of a run import this file."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}
