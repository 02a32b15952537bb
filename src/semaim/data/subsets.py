"""Parts of a set of images: held-out splits and a few images per class, chosen by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from semaim.core.seeding import derive_seed
from semaim.data.image_sets import ImageSet
from semaim.errors import UserError


class Subset:
    """Some images of a set.

    Args:
        images: the set.
        indices: which of its images, in order.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        return self.images.read(int(self.indices[index]))

    def label(self, index: int) -> int:
        return self.images.label(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.fingerprint().encode() + self.indices.tobytes()).hexdigest()

    def masked(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.flatnonzero(np.isin(self.indices, self.images.masked()))

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        return self.images.mask(int(self.indices[index]))


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split a labelled set in two: the rest, and a held-out share of every class.

    A class of one image stays whole; of any other class at least one image is on either side.

    Args:
        images: the set.
        fraction: share held out, between 0 and 1.
        seed: decides which images.

    Raises:
        UserError: if the fraction is no share, or no class has two images.
    """
    if not 0 < fraction < 1:
        raise UserError(f"a held-out share of {fraction} makes no sense: it must be between 0 and 1")
    kept, held = [], []
    for of_class in _shuffled_classes(images, seed, "held-out split"):
        size = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        held.append(of_class[:size])
        kept.append(of_class[size:])
    if not any(len(of_class) for of_class in held):
        raise UserError("no image can be held out, since every class has a single one")
    return Subset(images, np.sort(np.concatenate(kept))), Subset(images, np.sort(np.concatenate(held)))


def few_of_each_class(images: ImageSet, shots: int, seed: int) -> list[int]:
    """Indices of `shots` images of every class, sorted.

    Raises:
        UserError: if a class has fewer.
    """
    chosen: list[int] = []
    for of_class in _shuffled_classes(images, seed, "few-shot"):
        if len(of_class) < shots:
            where = f"class {images.label(int(of_class[0]))}"
            raise UserError(f"{shots} images per class asked for, but {where} has {len(of_class)}: lower task.shots")
        chosen += of_class[:shots].tolist()
    return sorted(chosen)


def _shuffled_classes(images: ImageSet, seed: int, purpose: str) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Indices of each class in random order."""
    labels = np.array([images.label(i) for i in range(len(images))])
    generator = np.random.default_rng(derive_seed(seed, purpose))
    for label in np.unique(labels):
        yield generator.permutation(np.flatnonzero(labels == label))
