"""What lies in folders of image files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from PIL import Image

from semaim.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What Pillow raises on broken files, and on images of an absurd size.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def images_below(folder: Path, root: Path) -> list[str]:
    """All images at any depth, links followed, as paths from the root, sorted."""
    found = [
        str((Path(where) / name).relative_to(root))
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if _is_image(name)  # a look at each file itself would take hours on a network file system
    ]
    return sorted(found)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, but hidden ones, sorted."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def no_images(folder: Path) -> str:
    """What to say of a folder without images."""
    return (
        f"{folder} holds no image ({', '.join(EXTENSIONS)}). Expected <class>/<image> below it, or "
        f"train/<class>/<image> and val/<class>/<image>, or images without labels directly in it (data.root)"
    )


def detect_layout(folder: Path) -> Literal["classes", "flat"]:
    """Which layout a folder has."""
    loose = next((p for p in folder.iterdir() if _is_image(p.name) and p.is_file()), None)
    classes = subfolders(folder)
    if loose is not None and classes:
        raise UserError(
            f"{folder} holds both images ({loose.name}, ...) and folders ({classes[0]}, ...): say which layout "
            f"is meant with data.source.layout=classes or data.source.layout=flat"
        )
    if loose is None and not classes:
        raise UserError(no_images(folder))
    return "classes" if loose is None else "flat"


def labelled_files(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """The images of each class folder, sorted, at any depth below it; their class numbers; the classes."""
    classes = subfolders(folder)
    files: list[str] = []
    labels: list[int] = []
    empty = []
    for number, name in enumerate(classes):
        found = images_below(folder / name, folder)
        files += found
        labels += [number] * len(found)
        if not found:
            empty.append(name)
    if not files:
        raise UserError(no_images(folder))
    if empty:
        raise UserError(f"{len(empty)} class folders of {folder} hold no image: {empty[:5]}; remove or fill them")
    return files, labels, classes
