"""Images that fail on the second of torchrun's processes alone, so that the first one waits for it."""

from __future__ import annotations

import os
from typing import Any

from semaim.data.image_sets import ImageSet, Splits
from support.paced import squares

ONE_SIDED = ("data.source._target_=support.one_sided.images",)
FAILING = 0.3


class Failing:
    """Images whose labels cannot be had after the first step."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.asked = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["images"], name)

    def label(self, index: int) -> int:
        self.asked += 1
        if os.environ["RANK"] == "1" and self.asked > 8:
            raise RuntimeError("no labels on the second process")
        return self.images.label(index)


def images(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """As `paced.squares`; with FAILING as the share of held-out images the second process fails."""
    splits = squares(side, val_fraction)
    train = Failing(splits.train) if val_fraction == FAILING else splits.train
    return Splits(train, splits.labelled, splits.val, splits.classes)
