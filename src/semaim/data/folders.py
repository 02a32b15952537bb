"""Listing of image folders."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Literal

from semaim.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def images_below(folder: Path, root: Path) -> list[str]:
    """All images at any depth, following links, as sorted paths relative to the root."""
    files = [
        str((Path(parent) / name).relative_to(root))
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if _is_image(name)  # by name only: a stat of each file would take hours on a network file system
    ]
    return sorted(files)


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the sub-folders of a folder, without hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def no_images_message(folder: Path) -> str:
    """Error message for a folder without images."""
    return (
        f"{folder} holds no image ({', '.join(EXTENSIONS)}). Expected <class>/<image> below it, or "
        f"train/<class>/<image> and val/<class>/<image>, or images without labels directly in it (data.root)"
    )


def detect_layout(folder: Path) -> Literal["classes", "flat"]:
    """Detect the layout of a folder.

    Raises:
        UserError: if the folder holds no image, or both images and folders.
    """
    loose = next((p for p in folder.iterdir() if _is_image(p.name) and p.is_file()), None)
    classes = subfolders(folder)
    if loose is not None and classes:
        raise UserError(
            f"{folder} holds both images ({loose.name}, ...) and folders ({classes[0]}, ...): set the "
            f"layout with data.source.layout=classes or data.source.layout=flat"
        )
    if loose is None and not classes:
        raise UserError(no_images_message(folder))
    return "classes" if loose is None else "flat"


def labelled_files(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """Images of all class folders, at any depth and sorted; their class indices; the class names.

    Raises:
        UserError: if there are no images, or a class folder is empty.
    """
    classes = subfolders(folder)
    class_files = [images_below(folder / name, folder) for name in classes]
    files = list(chain.from_iterable(class_files))
    if not files:
        raise UserError(no_images_message(folder))
    if empty := [name for name, own in zip(classes, class_files, strict=True) if not own]:
        raise UserError(f"{len(empty)} class folders of {folder} hold no image: {empty[:5]}; remove or fill them")
    labels = [index for index, own in enumerate(class_files) for _ in own]
    return files, labels, classes
