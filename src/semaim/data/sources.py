"""Data sources: embedded images, torchvision's data sets, and folders of image files.

A source is a function that returns `Splits`. It validates its data; the errors describe the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from semaim.data.folders import EXTENSIONS, detect_layout, images_below, labelled_files, no_images_message, subfolders
from semaim.data.image_sets import ArrayImages, FileImages, Splits, mask_name
from semaim.errors import UserError


def digits(side: int = 32, val_fraction: float = 0.2) -> Splits:
    """scikit-learn's 1797 handwritten digits (8x8 grey), enlarged; a fixed stratified part is held out.

    Their masks are the strokes: pixels brighter than middle grey.

    Args:
        side: pixels per side after bicubic enlargement.
        val_fraction: share of images held out for evaluation.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if not 0 < val_fraction < 1:
        raise UserError(f"data.source.val_fraction={val_fraction} must be between 0 and 1")
    data = load_digits()
    grey = (data.images * (255.0 / 16.0)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(g).resize((side, side), Image.Resampling.BICUBIC)) for g in grey]
    images_NHWC = np.stack(large)[..., None].repeat(3, axis=-1)
    train, val = train_test_split(
        np.arange(len(grey)), test_size=val_fraction, stratify=data.target, random_state=0, shuffle=True
    )
    strokes_NHW = (images_NHWC[..., 0] > 127).astype(np.uint8)
    train_set = ArrayImages(images_NHWC[train], data.target[train], "digits/train", strokes_NHW[train])
    val_set = ArrayImages(images_NHWC[val], data.target[val], "digits/val", strokes_NHW[val])
    return Splits(train_set, train_set, val_set, [str(n) for n in range(10)])


def _torchvision_set(make: Callable[[], Any], name: str, root: str) -> Any:
    """Build a torchvision data set; raises UserError if it is missing or incomplete."""
    try:
        return make()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise UserError(
            f"{name} is neither complete in data.root={root} nor could it be downloaded ({error}). On a machine with a "
            f"network run the same command with data.source.download=true, then copy the folder here"
        ) from error


def cifar10(root: str, download: bool) -> Splits:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in 10 classes."""
    from torchvision.datasets import CIFAR10

    def part(train: bool) -> ArrayImages:
        data = _torchvision_set(lambda: CIFAR10(root, train=train, download=download), "CIFAR-10", root)
        return ArrayImages(data.data, data.targets, f"cifar10/{'train' if train else 'test'}")

    train = part(True)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return Splits(train, train, part(False), classes)


def stl10(root: str, download: bool) -> Splits:
    """STL-10 (96x96): 100,000 unlabelled and 5,000 labelled training images, 8,000 test images in 10 classes."""
    from torchvision.datasets import STL10

    def part(split: str) -> ArrayImages:
        data = _torchvision_set(lambda: STL10(root, split=split, download=download), "STL-10", root)
        return ArrayImages(data.data.transpose(0, 2, 3, 1), data.labels, f"stl10/{split}")

    classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    return Splits(part("train+unlabeled"), part("train"), part("test"), classes)


def image_folders(
    root: str, layout: Literal["auto", "classes", "flat"] = "auto", masks: str | None = None, exif: bool = False
) -> Splits:
    """Folders of image files.

    `root/train/<class>/*.jpg` and `root/val/<class>/*.jpg` (ImageNet's layout); or `root/<class>/*.jpg` without
    held-out images; or images without labels directly in `root` (or `root/train`).

    Args:
        root: the folder.
        layout: "classes": each sub-folder is a class; "flat": all images at any depth, without labels; "auto": "flat"
            if there are images directly in the folder, else "classes".
        masks: folder of object masks in the format of Pascal VOC: the mask of root/a/b.jpg is masks/a/b.png, grey or
            with a palette, 0 background, 255 void, other values object. Masks are optional per image.
        exif: turn images as their EXIF orientation says.

    Raises:
        UserError: if a folder is missing, the root holds no image, mixes both layouts, or train and val differ in
            classes or are the same folder; or if no image has a mask.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root} is not a folder: set data.root to the folder that holds the images")
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    if train_folder == folder and subfolders(folder) == ["val"]:
        raise UserError(f"{folder} holds val/ but no train/: data.root must hold the images to train on")
    val_folder = folder / "val" if train_folder != folder and (folder / "val").is_dir() else None
    if layout not in ("auto", "classes", "flat"):
        raise UserError(f"data.source.layout={layout} is unknown: choose auto, classes or flat")
    if masks is not None and not Path(masks).expanduser().is_dir():
        raise UserError(
            f"data.source.masks={masks} is not a folder: set it to the folder that holds the masks, or null"
        )

    def file_images(part: Path, files: Sequence[str], labels: Sequence[int] | None) -> FileImages:
        part_masks = None if masks is None else Path(masks).expanduser() / part.relative_to(folder)
        return FileImages(part, files, labels, part_masks, exif)

    if layout == "auto":
        layout = detect_layout(train_folder)
    if layout == "flat":
        files = images_below(train_folder, train_folder)
        if not files:
            raise UserError(no_images_message(train_folder))
        splits = Splits(file_images(train_folder, files, None), None, None, [])
    else:
        splits = _labelled(train_folder, val_folder, file_images)
    if masks is not None and not any(len(part.masked()) for part in (splits.train, splits.val) if part is not None):
        name = splits.train.name(0)
        expected = Path(masks, mask_name(str(Path(name).relative_to(folder))))
        raise UserError(
            f"data.source.masks={masks} holds no mask of any image: that of {name}, for one, would be {expected}"
        )
    return splits


def _labelled(
    train_folder: Path, val_folder: Path | None, file_images: Callable[[Path, Sequence[str], Sequence[int]], FileImages]
) -> Splits:
    """Splits of folders with one sub-folder per class."""
    files, labels, classes = labelled_files(train_folder)
    train = file_images(train_folder, files, labels)
    if val_folder is None:
        return Splits(train, train, None, classes)
    if val_folder.samefile(train_folder):
        raise UserError(
            f"{val_folder} is {train_folder} itself: accuracy on training images is not meaningful. Put held-out "
            f"images there, or remove val/ and request a split with data.val_fraction=0.1"
        )
    files, labels, val_classes = labelled_files(val_folder)
    if val_classes != classes:
        different = sorted(set(classes) ^ set(val_classes))
        raise UserError(
            f"{train_folder} and {val_folder} must hold the same classes; {len(different)} differ: {different[:5]}"
        )
    return Splits(train, train, file_images(val_folder, files, labels), classes)


def image_files(paths: Sequence[str]) -> FileImages:
    """Unlabelled images, turned as their EXIF orientation says: given files, and all images below given folders.

    Raises:
        UserError: if a path does not exist, or there is no image.
    """
    files: list[str] = []
    for path in (Path(each).expanduser() for each in paths):
        if not path.exists():
            raise UserError(f"images={path} does not exist: give files of images, or folders of them")
        files += [str(path / name) for name in images_below(path, path)] if path.is_dir() else [str(path)]
    if not files:
        raise UserError(f"images={','.join(paths)} holds no image ({', '.join(EXTENSIONS)})")
    return FileImages(Path(), files, None, exif=True)
