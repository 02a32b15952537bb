"""Layouts of image folders: which folders are splits, which are classes. docs/data.md states the rules.

What could be read in two ways is an error that names the option to decide it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from semaim.core.formatting import plural, quoted
from semaim.data.folders import Folder, Listing
from semaim.errors import UserError

log = logging.getLogger(__name__)
Layout = Literal["auto", "splits", "classes", "flat"]
CHOICES = (
    "set data.source.layout=splits (train/ and val/ alone count), data.source.layout=classes (every folder is a class) "
    "or data.source.layout=flat (all images at any depth, without labels)"
)
VARIANT = r"([\W_]*(\d|set|images|data|split))*"  # test2017, train_images
TEST = re.compile(rf"(?i)(test|testing){VARIANT}")
SPLIT = re.compile(rf"(?i)(?P<of>.*[\W_])?(train|training|val|valid|validation|eval|dev|test|testing){VARIANT}")


@dataclass(frozen=True)
class Part:
    """Training or held-out images.

    Attributes:
        folder: their folder.
        files: their paths relative to it.
        labels: their class indices; None without labels.
        classes: names of the classes.
    """

    folder: Path
    files: Sequence[str]
    labels: Sequence[int] | None
    classes: Sequence[str]


def parts(path: Path, layout: Layout, listing: Listing) -> tuple[Layout, Part, Part | None]:
    """List a folder.

    Args:
        path: the folder.
        layout: its layout; "auto" finds it out.
        listing: lists the folders.

    Returns:
        the layout, the training images and the held-out images, if there are any.

    Raises:
        UserError: for an ambiguous layout, no images, or classes that do not fit.
    """
    root = listing.look(path)
    assert root is not None, "nothing was listed before"
    found = _detected(root, listing) if layout == "auto" else layout
    if found == "classes" and "train" in root.folders and {"train", "val"} >= set(root.folders):
        raise UserError(
            f"data.source.layout=classes, but {root} holds {_some(root.folders)} alone, which are splits: set "
            f"data.source.layout=splits"
        )
    if found == "flat" and {"train", "val"} <= set(root.folders):
        log.warning("data.source.layout=flat: %s/train and %s/val are both trained on", root, root)
    if found == "splits":
        return found, *_splits(root, layout == "auto", listing)
    return found, _labelled(root, layout == "auto", listing) if found == "classes" else _flat(root, listing), None


def _detected(root: Folder, listing: Listing) -> Layout:
    """The layout of a folder by the names in it; raises UserError if it is ambiguous, or there are no images."""
    names = set(root.folders)
    others = {name for name in names - {"train", "val"} if not ("val" in names and TEST.fullmatch(name))}
    if "train" in names and not (_splits_of(others) or any(_holds_images(root.path / name) for name in others)):
        return "splits"
    if names == {"val"} and not root.images:
        raise UserError(f"{root} holds val/ but no train/: data.root must hold the images to train on")
    if splits := _splits_of(root.folders):
        beside = [name for name in root.folders if name not in splits]
        raise UserError(
            f"{root} holds the folders {_some(splits)}{f' beside {_some(beside)}' if beside else ''}, which may be "
            f"splits or classes. Splits are called train/ and val/: rename the folders, or {CHOICES}"
        )
    if root.images and root.folders:
        raise UserError(f"{_mixed(root)}: {CHOICES}")
    if not root.images and not root.folders:
        raise listing.no_images(root)
    return "flat" if root.images else "classes"


def _splits(root: Folder, auto: bool, listing: Listing) -> tuple[Part, Part | None]:
    """The images of train/ and val/."""
    if "train" not in root.folders:
        raise UserError(f"data.source.layout=splits, but {root} holds no folder train/ ({_some(root.folders)})")
    for name in set(root.folders) - {"train", "val"}:
        listing.left_out[f"{quoted(name)}/ folder"] += 1
    listing.left_out["loose image"] += len(root.images)
    train = _entered(root.path / "train", listing)
    if auto and train.images and train.folders:
        raise UserError(
            f"{_mixed(train)}: set data.source.layout=splits to leave these images out, or data.root={train} "
            f"data.source.layout=flat to use all images, without labels"
        )
    if not train.folders:
        listing.left_out["val/ folder"] += "val" in root.folders  # images without labels cannot be evaluated
        return _flat(train, listing), None
    labelled = _labelled(train, auto, listing)
    if "val" not in root.folders:
        return labelled, None
    val = listing.look(root.path / "val")
    if val is None:
        raise UserError(
            f"{root}/val is {quoted(listing.again[-1][1])} itself: accuracy on training images is not meaningful. "
            f"Put held-out images there, or remove val/ and request a split with data.val_fraction=0.1"
        )
    if val.images and not val.folders:
        raise UserError(f"{val} holds images without classes, {train} has class folders: sort the images of val/ into "
                        f"folders of the same names")  # fmt: skip
    held_out = _labelled(val, auto, listing)
    if different := sorted(set(labelled.classes) ^ set(held_out.classes)):
        raise UserError(f"{train} and {val} must hold the same classes; {len(different)} differ: {_some(different)}")
    return labelled, held_out


def _flat(folder: Folder, listing: Listing) -> Part:
    """All images of a folder at any depth, without labels."""
    if files := listing.below(folder):
        return Part(folder.path, files, None, [])
    raise listing.no_images(folder)


def _labelled(folder: Folder, auto: bool, listing: Listing) -> Part:
    """Images of all class folders, at any depth.

    Raises:
        UserError: if there are none, a class is empty or shares a folder with another, or a folder in a class may be a
            split (unless the layout was set).
    """
    listing.left_out["loose image"] += len(folder.images)
    contents = [listing.look(folder.path / name) for name in folder.folders]
    class_files = [[] if content is None else listing.below(content) for content in contents]
    depth = len(folder.path.parts) + 1
    for path, first in listing.again:
        if not path.is_relative_to(first) and path.parts[:depth] != first.parts[:depth]:
            raise UserError(
                f"{quoted(path)} and {quoted(first)} are the same folder by a link, so its images would be in "
                f"two classes, or both trained on and held out: remove one"
            )
    if not any(class_files):
        raise listing.no_images(folder)
    if empty := [name for name, own in zip(folder.folders, class_files, strict=True) if not own]:
        raise UserError(
            f"{folder} holds {plural(len(empty), 'class folder')} without images: {_some(empty)}; remove or fill "
            f"{'it' if len(empty) == 1 else 'them'}{listing.omissions()}"
        )
    deeper = [path for path in listing.listed.values() if len(path.parts) > depth]
    if auto and (split := next((path for path in deeper if _splits_of([path.name])), None)) is not None:
        raise UserError(
            f"{quoted(split)} may be a split, but would belong to a class of {folder} ({_some(folder.folders)}): "
            f"set data.root={quoted(split.parent)}, or {CHOICES}"
        )
    inner = {() if content.images else tuple(content.folders) for content in contents if content}
    if auto and len(inner) == 1 and len(same := inner.pop()) > 1:
        raise UserError(
            f"the folders of {folder} ({_some(folder.folders)}) all hold the folders {_some(same)}, which may be the "
            f"classes: set data.root to the folder that holds the classes, rename splits, or {CHOICES}"
        )
    files = [f"{name}/{file}" for name, own in zip(folder.folders, class_files, strict=True) for file in own]
    labels = list(chain.from_iterable([index] * len(own) for index, own in enumerate(class_files)))
    return Part(folder.path, files, labels, folder.folders)


def _entered(path: Path, listing: Listing) -> Folder:
    """A folder that must not be a link to one that was listed."""
    if (folder := listing.look(path)) is None:
        raise UserError(f"{quoted(path)} is a link to a folder that holds it: remove it")
    return folder


def _splits_of(names: Iterable[str]) -> list[str]:
    """The names that may be those of splits: train2017; also img_train and img_test, but not bullet_train alone."""
    found = {name: match["of"] for name in names if (match := SPLIT.fullmatch(name))}
    return [name for name, of in found.items() if of is None or list(found.values()).count(of) > 1]


def _holds_images(path: Path) -> bool:
    listing = Listing("data.root")
    return (folder := listing.look(path)) is not None and bool(listing.below(folder))


def _mixed(folder: Folder) -> str:
    return f"{folder} holds both images ({quoted(min(folder.images))}, ...) and folders ({_some(folder.folders)})"


def _some(names: Sequence[str]) -> str:
    """Some names of folders, for messages."""
    return ", ".join(f"{quoted(name)}/" for name in names[:5]) + (", ..." if len(names) > 5 else "")
