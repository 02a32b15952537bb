"""Image sets with random access: in memory or in files, with optional labels and masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from semaim.data.masks import mask_names, read_mask
from semaim.data.names import Names
from semaim.data.pixels import Picture, size_of
from semaim.data.reading import Unreadable, read_rgb, reason

UNLABELLED = -1


class ImageSet(Protocol):
    """Interface of image sets; images can be read in any process."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> Picture:
        """The image in RGB: a PIL image, or its pixels, uint8 (3, height, width).

        Raises any exception if it cannot be read: see `read_image`.
        """
        ...

    def label(self, index: int) -> int:
        """Class index, or UNLABELLED."""
        ...

    def name(self, index: int) -> str:
        """Name of the image for messages: a path, or the set and index."""
        ...

    def fingerprint(self) -> str:
        """Hash of the set, which copies of it share; of image files, relative paths and labels are hashed."""
        ...

    def place(self) -> str:
        """Real path of the folder of image files; empty for images in memory."""
        ...

    def masked(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Indices of the images that have a mask."""
        ...

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """Mask (height, width) of the image as read, or None: 0 background, 255 void, other values object."""
        ...


def read_image(images: ImageSet, index: int) -> Picture:
    """An image in RGB, as PIL image or pixels. Raises Unreadable if it cannot be read."""
    try:
        return images.read(index)
    except Exception as error:  # Pillow and its libraries raise whatever they like
        raise Unreadable(reason(error)) from error


@dataclass(frozen=True)
class Splits:
    """Image sets of a data source.

    Attributes:
        train: images for pretraining, labels optional.
        labelled: training images with labels (for example the bank of a k-NN), or None.
        val: held-out images with labels, or None.
        classes: names of the classes.
    """

    train: ImageSet
    labelled: ImageSet | None
    val: ImageSet | None
    classes: Sequence[str]


class ArrayImages:
    """Images held in memory: uint8 (n, height, width, 3), optionally with masks (n, height, width)."""

    def __init__(
        self,
        images_NHWC: np.ndarray[Any, Any],
        labels: Sequence[int],
        title: str,
        masks_NHW: np.ndarray[Any, np.dtype[np.uint8]] | None = None,
    ) -> None:
        self.images_NHWC = np.ascontiguousarray(images_NHWC, dtype=np.uint8)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.title = title
        self.masks_NHW = masks_NHW

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images_NHWC[index])

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.images_NHWC.data)  # without a copy: STL-10 has 3 GB
        digest.update(self.labels.data)
        return digest.hexdigest()

    def place(self) -> str:
        return ""

    def masked(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(0 if self.masks_NHW is None else len(self))

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        return None if self.masks_NHW is None else self.masks_NHW[index]


class FileImages:
    """Images in files, decoded when read.

    Args:
        root: folder of the files.
        files: their paths relative to the root.
        labels: their class indices, or None.
        masks: folder of masks; a mask has the relative path of its image with the suffix .png.
        exif: turn images as their EXIF orientation says.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int] | None,
        masks: Path | None = None,
        exif: bool = False,
    ) -> None:
        self.root = root
        self.prefix = "" if root == Path() else os.path.join(root, "")  # of names; joining paths takes longer
        self.exif = exif
        self.files = Names.of(files)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.masks = masks
        self.has_mask = np.zeros(len(files), bool)
        if masks is not None:
            available = mask_names(masks)
            self.has_mask[:] = [mask_name(file) in available for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Picture:
        return read_rgb(self.name(index), self.exif)

    def encoded(self, index: int) -> bytes:
        """The file of an image; raises OSError if it cannot be read."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def label(self, index: int) -> int:
        return UNLABELLED if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.prefix}{self.files[index]}"

    def fingerprint(self) -> str:
        return fingerprint(self.files, self.labels, self.exif)

    def place(self) -> str:
        return os.path.realpath(self.root)

    def masked(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.flatnonzero(self.has_mask)

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        if self.masks is None or not self.has_mask[index]:
            return None
        return read_mask(self.masks / mask_name(self.files[index]), size_of(self.read(index)))


def fingerprint(names: Names, labels: np.ndarray[Any, np.dtype[np.int64]] | None, exif: bool) -> str:
    """Hash of images by their relative paths, their classes and whether they are turned."""
    digest = hashlib.sha256(names.joined.data)
    digest.update(b"\0exif" * exif)
    digest.update(b"" if labels is None else labels.data)
    return digest.hexdigest()


def mask_name(file: str) -> str:
    """Path of an image's mask, relative to the folder of masks."""
    return str(PurePath(file).with_suffix(".png"))
