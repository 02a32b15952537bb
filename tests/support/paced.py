"""Images that are read slowly, so that a run takes its time while a test wants to meet it in the middle.

`digits` is also imported inside jobs: it is their data source.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from semaim.data import sources
from semaim.data.image_sets import ImageSet, Splits
from support.paths import TESTS

PACE = "SEMAIM_TEST_PACE"  # names a file with the seconds that reading an image takes; without it none
PACED = ("data.source._target_=support.paced.digits",)


class Slow:
    """Images that take their time."""

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


def digits(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """The usual digits, read slowly in training."""
    splits = sources.digits(side, val_fraction)
    return replace(splits, train=Slow(splits.train))


def import_path() -> dict[str, str]:
    """What lets the processes of a run import this file."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}
