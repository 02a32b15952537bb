"""Data sources: embedded images, torchvision's data sets, and folders of image files.

A source is a function that returns `Splits`. It validates its data; the errors describe the problem.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
from PIL import Image

from semaim.core.formatting import plural, quoted
from semaim.core.locks import one_at_a_time
from semaim.data.folders import EXTENSIONS, Listing
from semaim.data.image_sets import ArrayImages, FileImages, Splits, mask_name
from semaim.data.layouts import Layout, Part, parts
from semaim.data.listing_cache import listing_cache
from semaim.data.shards import is_sharded, shards
from semaim.errors import CannotWrite, UserError

log = logging.getLogger(__name__)


def digits(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """scikit-learn's 1797 handwritten digits (8x8 grey), enlarged; a fixed part, stratified by default, is held out.

    Their masks are the strokes: pixels brighter than middle grey. `digits.npz` holds the images (0 to 16) in the order
    of scikit-learn's stratified `train_test_split` at the default share, so that nothing waits for its import, which
    takes a second. Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998 (CC BY 4.0).

    Args:
        side: pixels per side after bicubic enlargement.
        val_fraction: share of images held out for evaluation, from the end of that order.

    Raises:
        UserError: if that leaves no image for training.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as data:
        grey, labels = (data["images"] * (255.0 / 16.0)).astype(np.uint8), data["labels"].astype(np.int64)
    large = [np.asarray(Image.fromarray(g).resize((side, side), Image.Resampling.BICUBIC)) for g in grey]
    images_NHWC = np.stack(large)[..., None].repeat(3, axis=-1)
    strokes_NHW = (images_NHWC[..., 0] > 127).astype(np.uint8)
    first = len(grey) - math.ceil(val_fraction * len(grey))
    if not first:
        raise UserError(f"data.source.val_fraction={val_fraction:g} leaves none of the {len(grey)} images for training")
    train, val = (
        ArrayImages(images_NHWC[part], labels[part], f"digits/{name}", strokes_NHW[part])
        for name, part in (("train", slice(first)), ("val", slice(first, None)))
    )
    return Splits(train, train, val, [str(n) for n in range(10)])


# Errors of torchvision for data that are missing, incomplete or damaged, and for downloads that fail.
FETCHING = (OSError, RuntimeError, EOFError, HTTPException, TarError, CannotWrite)


def _torchvision_set(make: Callable[[bool], Any], name: str, root: str, download: bool) -> Any:
    """Build a torchvision data set; of the processes that find it incomplete, one downloads it.

    Args:
        make: builds the data set, which torchvision verifies by checksums; if its argument is true, missing files are
            downloaded first.
        name: name for messages.
        root: folder of the data.
        download: whether to download what is missing.

    Raises:
        UserError: if it is missing or incomplete, or another process downloads it for too long.
    """
    try:
        try:
            return make(False)
        except FETCHING:
            if not download:
                raise
        folder = Path(root).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / ".download.lock", f"download of {name}"):
            return make(True)
    except FETCHING as error:
        raise UserError(
            f"{name} is neither complete in data.root={root} nor could it be downloaded ({error}). On a machine with a "
            f"network run the same command with data.source.download=true, then copy the folder here"
        ) from error


def cifar10(root: str, download: bool) -> Splits:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in 10 classes."""
    from torchvision.datasets import CIFAR10

    def part(train: bool) -> ArrayImages:
        data = _torchvision_set(lambda fetch: CIFAR10(root, train=train, download=fetch), "CIFAR-10", root, download)
        return ArrayImages(data.data, data.targets, f"cifar10/{'train' if train else 'test'}")

    train = part(True)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return Splits(train, train, part(False), classes)


def stl10(root: str, download: bool) -> Splits:
    """STL-10 (96x96): 100,000 unlabelled and 5,000 labelled training images, 8,000 test images in 10 classes."""
    from torchvision.datasets import STL10

    def part(split: str) -> ArrayImages:
        data = _torchvision_set(lambda fetch: STL10(root, split=split, download=fetch), "STL-10", root, download)
        return ArrayImages(data.data.transpose(0, 2, 3, 1), data.labels, f"stl10/{split}")

    classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    return Splits(part("train+unlabeled"), part("train"), part("test"), classes)


def image_folders(root: str, layout: Layout = "auto", masks: str | None = None, exif: bool = False) -> Splits:
    """Folders of image files; docs/data.md states what counts as an image and how the layout is found.

    Args:
        root: the folder; or one of shards, which hold the same images.
        layout: "splits": root/train/<class>/*.jpg and root/val/<class>/*.jpg, or root/train/*.jpg without labels;
            "classes": root/<class>/*.jpg; "flat": all images at any depth, without labels; "auto": the one that the
            names of the folders tell.
        masks: folder of object masks in the format of Pascal VOC: the mask of root/a/b.jpg is masks/a/b.png, grey or
            with a palette, 0 background, 255 void, other values object. Masks are optional per image.
        exif: turn images as their EXIF orientation says.

    Raises:
        UserError: if a folder is missing or cannot be listed, the root holds no image, its layout is ambiguous, or
            train and val differ in classes or share a folder; or if no image has a mask.
    """
    folder = Path(root).expanduser()
    if not root or not os.path.isdir(folder):
        raise UserError(f"data.root={quoted(root)} is not a folder: set data.root to the folder that holds the images")
    if is_sharded(folder):
        return _in_place_of(root, layout, masks, exif)
    mask_folder = None if masks is None else Path(masks).expanduser()
    if mask_folder is not None and (not masks or not os.path.isdir(mask_folder)):
        raise UserError(
            f"data.source.masks={masks} is not a folder: set it to the folder that holds the masks, or null"
        )
    with listing_cache(folder) as cache:
        listing = Listing("data.root", cache=cache)
        found, train, val = parts(folder, layout, listing)
    if mask_folder is not None and os.path.realpath(mask_folder) in listing.listed:
        raise UserError(
            f"data.source.masks={masks} is inside data.root={root}, so masks would be taken for images: move it, or "
            f"set data.root to the folder of the images alone"
        )

    def file_images(part: Part) -> FileImages:
        of_part = None if mask_folder is None else mask_folder / part.folder.relative_to(folder)
        return FileImages(part.folder, part.files, part.labels, of_part, exif)

    train_set, val_set = file_images(train), None if val is None else file_images(val)
    classes = [quoted(name) for name in train.classes]
    log.info(
        "data.root=%s: layout %s, %s%s%s%s%s",
        quoted(root),
        found,
        plural(len(train_set), "image"),
        f" of {plural(len(classes), 'class', 'es')}" if classes else "",
        f", {len(val_set)} held out" if val_set is not None else "",
        listing.omissions(),
        cache,
    )
    if masks is not None and not any(len(part.masked()) for part in (train_set, val_set) if part is not None):
        name = train_set.name(0)
        expected = Path(masks, mask_name(str(Path(name).relative_to(folder))))
        raise UserError(
            f"data.source.masks={masks} holds no mask of any image: that of {quoted(name)}, for one, would be "
            f"{quoted(expected)}"
        )
    return Splits(train_set, None if train.labels is None else train_set, val_set, classes)


def _in_place_of(root: str, layout: Layout, masks: str | None, exif: bool) -> Splits:
    """Shards, read as the folder of images that they were written from; raises UserError if an option does not fit."""
    if masks is not None:
        raise UserError(f"data.source.masks={masks}: shards (data.root={quoted(root)}) hold no masks; give the folder "
                        f"of the images, or leave the masks out")  # fmt: skip
    splits = shards(root, exif)
    found = "flat" if splits.labelled is None else "classes" if splits.val is None else "splits"
    if layout not in ("auto", "splits", found):
        raise UserError(f"data.source.layout={layout}, but the shards in data.root={quoted(root)} were written from a "
                        f"folder of layout {found}: leave it out")  # fmt: skip
    return splits


def image_files(paths: Sequence[str]) -> FileImages:
    """Unlabelled images, turned as their EXIF orientation says: given files, and all images below given folders.

    Raises:
        UserError: if a path is neither a file nor a folder, or there is no image.
    """
    files: list[str] = []
    for given in paths:
        path, listing = Path(given).expanduser(), Listing("images")
        if given and path.is_file():
            files.append(str(path))
        elif given and path.is_dir() and (folder := listing.look(path)) is not None:
            names = listing.below(folder)
            files += [str(path / name) for name in names]
            log.info("images=%s: %s%s", folder, plural(len(names), "image"), listing.omissions())
        else:
            raise UserError(f"images={quoted(given)} is neither a file nor a folder: give files of images, or folders")
    if not files:
        raise UserError(f"images={quoted(','.join(paths))} holds no image ({', '.join(EXTENSIONS)})")
    return FileImages(Path(), files, None, exif=True)
