"""Subsets of an image set: held-out splits and few-shot samples, drawn with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from semaim.core.formatting import plural
from semaim.core.seeding import derive_seed
from semaim.data.image_sets import ImageSet
from semaim.data.pixels import Picture
from semaim.errors import UserError


class Subset:
    """Subset of an image set.

    Args:
        images: the image set.
        indices: indices of its images, in order.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Picture:
        return self.images.read(int(self.indices[index]))

    def label(self, index: int) -> int:
        return self.images.label(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.fingerprint().encode() + self.indices.tobytes()).hexdigest()

    def place(self) -> str:
        return self.images.place()

    def masked(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.flatnonzero(np.isin(self.indices, self.images.masked()))

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        return self.images.mask(int(self.indices[index]))


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split a labelled set: the remaining images, and a held-out share of every class.

    A class with a single image is not split; otherwise both parts contain at least one image of each class.

    Args:
        images: the image set.
        fraction: share held out, between 0 and 1.
        seed: seed of the split.

    Raises:
        UserError: if the fraction is not between 0 and 1, or every class has a single image.
    """
    if not 0 < fraction < 1:
        raise UserError(f"a held-out share of {fraction} is invalid: it must be between 0 and 1")
    kept, held = [], []
    for class_indices in _shuffled_classes(images, seed, "held-out split"):
        size = min(max(1, round(fraction * len(class_indices))), len(class_indices) - 1)
        held.append(class_indices[:size])
        kept.append(class_indices[size:])
    if not any(len(class_indices) for class_indices in held):
        raise UserError("no image can be held out, since every class has a single one")
    return Subset(images, np.sort(np.concatenate(kept))), Subset(images, np.sort(np.concatenate(held)))


def few_shot_indices(images: ImageSet, shots: int, seed: int) -> list[int]:
    """Indices of `shots` images of every class, sorted.

    Raises:
        UserError: if a class has fewer.
    """
    indices: list[int] = []
    for class_indices in _shuffled_classes(images, seed, "few-shot"):
        if len(class_indices) < shots:
            name = f"class {images.label(int(class_indices[0]))}"
            raise UserError(
                f"{plural(shots, 'image')} per class requested, but {name} has {len(class_indices)}: lower task.shots"
            )
        indices += class_indices[:shots].tolist()
    return sorted(indices)


def _shuffled_classes(images: ImageSet, seed: int, purpose: str) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Indices of each class in random order."""
    labels = np.array([images.label(i) for i in range(len(images))])
    generator = np.random.default_rng(derive_seed(seed, purpose))
    for label in np.unique(labels):
        yield generator.permutation(np.flatnonzero(labels == label))
