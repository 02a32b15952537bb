"""Images with a read delay, so that a test can observe a run in progress.

Jobs also import `digits`, as their data source.
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

PACE = "SEMAIM_TEST_PACE"  # names a file with the seconds per image read; no delay if unset
PACED = ("data.source._target_=support.paced.digits",)


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


def digits(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """The usual digits; training images are read with a delay."""
    splits = sources.digits(side, val_fraction)
    return replace(splits, train=Slow(splits.train))


def import_path() -> dict[str, str]:
    """Environment that lets the processes of a run import this file."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}
