"""Listing of image folders: what is an image, and what is left out. docs/data.md states the rules."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semaim.core.formatting import plural, quoted
from semaim.data.listing_cache import Content, ListingCache, stamp
from semaim.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Made by macOS, Windows, network storage, file systems and Python; beside them, names that begin with a dot are hidden.
SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir", "@recycle"}
SYSTEM |= {"#recycle", "#snapshot", "lost+found", "__pycache__"}
MOST_NAMED = 8  # kinds of files left out that a message names


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return name.lower().endswith(EXTENSIONS)


@dataclass(frozen=True)
class Folder:
    """Content of one folder.

    Attributes:
        path: the folder.
        images: names of the images directly in it.
        folders: sorted names of its sub-folders.
    """

    path: Path
    images: list[str]
    folders: list[str]

    def __str__(self) -> str:
        return quoted(self.path)


class Listing:
    """Lists the folders of one data source, each real folder once, and counts what is left out.

    Args:
        option: the option that gave the folder, for messages.
        accepts: whether a file is listed, by its name.
        cache: listings of earlier starts.

    Attributes:
        left_out: quantity of each kind of entry that is not listed.
        listed: path of each listed folder, by its real path.
        again: each path of a folder that was listed before, and the path by which it was.
    """

    def __init__(
        self, option: str, accepts: Callable[[str], bool] = is_image, cache: ListingCache | None = None
    ) -> None:
        self.option = option
        self.accepts = accepts
        self.cache = cache or ListingCache()
        self.left_out: Counter[str] = Counter()
        self.listed: dict[str, Path] = {}
        self.again: list[tuple[Path, Path]] = []

    def look(self, path: Path) -> Folder | None:
        """List a folder; None if it was listed before, as links to folders may form loops.

        Raises:
            UserError: if it cannot be listed.
        """
        real = os.path.realpath(path)
        first = self.listed.setdefault(real, path)
        if first is not path:
            self.again.append((path, first))
            self.left_out["repeated folder"] += 1
            return None
        try:
            content = self.cache.find(real) or self._list(real)
        except OSError as error:
            raise UserError(
                f"{self.option}: the folder {quoted(path)} cannot be listed ({error.strerror}): make it readable, "
                f"or remove it"
            ) from error
        self.left_out += content.left_out
        return Folder(path, content.images, content.folders)

    def _list(self, path: str) -> Content:
        """List a folder by its real path."""
        started, before = time.perf_counter(), stamp(path)
        images, folders, left_out, lasting = list[str](), list[str](), Counter[str](), True
        with os.scandir(path) as entries:
            for entry in entries:
                kind = self._kind(entry)
                if kind == "image":
                    images.append(entry.name)
                    continue
                if kind == "folder":
                    folders.append(entry.name)
                else:
                    left_out[kind] += 1
                lasting &= not entry.is_symlink()  # a broken link, or one to a folder
        content = Content(images, sorted(folders), left_out, lasting)
        self.cache.add(path, before, content, time.perf_counter() - started)
        return content

    def _kind(self, entry: os.DirEntry[str]) -> str:
        """Kind of an entry. Only links cost a stat: one of each file would take hours on a network file system."""
        name = entry.name
        try:
            is_folder = entry.is_dir()
            if name.startswith(".") or name.lower() in SYSTEM:
                return "hidden folder" if is_folder else "hidden file"
            if is_folder:
                return "folder"
            if not entry.is_file():
                return "broken link" if entry.is_symlink() else "special file"  # a pipe, socket or device
        except OSError:  # a link to itself, or through a folder that may not be entered
            return "broken link"
        if self.accepts(name):
            return "image"
        suffix = os.path.splitext(name)[1]
        return f"{quoted(suffix)} file" if suffix else "extensionless file"

    def below(self, folder: Folder) -> list[str]:
        """Images of a folder at any depth, as sorted paths relative to it."""
        files = list(folder.images)
        pending = [(f"{name}/", folder.path / name) for name in reversed(folder.folders)]
        while pending:
            prefix, path = pending.pop()
            if (deeper := self.look(path)) is not None:
                files += [prefix + name for name in deeper.images]
                pending += [(f"{prefix}{name}/", path / name) for name in reversed(deeper.folders)]
        return sorted(files)

    def omissions(self) -> str:
        """What is left out, to append to a message; empty if nothing is."""
        kinds = [(kind, quantity) for kind, quantity in self.left_out.most_common() if quantity]
        named = [plural(quantity, kind) for kind, quantity in kinds[:MOST_NAMED]]
        if rest := sum(quantity for _, quantity in kinds[MOST_NAMED:]):
            named.append(plural(rest, "other"))
        return f"; left out: {', '.join(named)}" if named else ""

    def no_images(self, folder: Folder) -> UserError:
        """The error for a folder without images."""
        return UserError(
            f"{folder} holds no image ({', '.join(EXTENSIONS)}). Expected <class>/<image> below it, or "
            f"train/<class>/<image> and val/<class>/<image>, or images without labels directly in it "
            f"({self.option}){self.omissions()}"
        )
