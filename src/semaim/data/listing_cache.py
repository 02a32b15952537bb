"""Cache of folder listings: of a folder of a million files, only sub-folders whose times have changed are listed again.

The content of a folder cannot change without its times: mtime follows the names in it, ctime also follows whoever sets
mtime back. So one stat of each sub-folder takes the place of the listing of all files. The cache is a file of this
user, written only if listing took long. Without it, or if it cannot be written, folders are listed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semaim.core.cache_folder import cache_folder
from semaim.core.files import adapter, atomic
from semaim.core.formatting import duration, quoted
from semaim.core.locks import one_at_a_time
from semaim.core.ranks import ranks
from semaim.errors import CannotWrite

log = logging.getLogger(__name__)
VERSION = 1
WORTHWHILE_SECONDS = 1.0  # of listing
SETTLED_SECONDS = 60.0  # a folder changed later may change again at the same time, as coarse as its clock is


@dataclass(frozen=True)
class Content:
    """What a folder holds.

    Attributes:
        images: names of the images directly in it.
        folders: sorted names of its sub-folders.
        left_out: quantity of each kind of entry that is not listed.
        lasting: whether it cannot change without the times of the folder; what a link points to can.
    """

    images: list[str]
    folders: list[str]
    left_out: Counter[str]
    lasting: bool


Stamp = tuple[int, int, int]  # inode, mtime and ctime in nanoseconds


def stamp(folder: str) -> Stamp:
    """What tells that a folder has changed; raises OSError."""
    found = os.stat(folder)
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


Stored = dict[str, tuple[Stamp, list[str], list[str], dict[str, int]]]  # by path: stamp, images, folders, left out


@dataclass
class ListingCache:
    """The listings of the folders below a root.

    Attributes:
        file: of the cache; None keeps no listings.
        known: those of earlier starts, by the real path of the folder.
        used: those of this start.
        seconds: what listing took.
        listed, unchanged: number of folders that were listed, and that were as in the cache.
    """

    file: Path | None = None
    known: Stored = field(default_factory=dict)
    used: Stored = field(default_factory=dict)
    seconds: float = 0.0
    listed: int = 0
    unchanged: int = 0

    def find(self, folder: str) -> Content | None:
        """The listing of a folder that is unchanged since; raises OSError if there is no such folder any more."""
        if folder not in self.known or stamp(folder) != tuple((entry := self.known[folder])[0]):
            return None
        self.used[folder] = entry
        self.unchanged += 1
        return Content(entry[1], entry[2], Counter(entry[3]), lasting=True)

    def add(self, folder: str, before: Stamp, content: Content, seconds: float) -> None:
        """Add the listing of a folder.

        Args:
            folder: its real path.
            before: its stamp before it was listed.
            content: what it holds.
            seconds: what listing took.
        """
        self.seconds += seconds
        self.listed += 1
        if content.lasting and max(before[1:]) / 1e9 < time.time() - SETTLED_SECONDS:
            self.used[folder] = (before, content.images, content.folders, dict(content.left_out))

    def save(self) -> None:
        """Write the listings of this start, if listing took long."""
        if self.file is None or self.seconds < WORTHWHILE_SECONDS or not self.used:
            return
        try:
            with atomic(self.file) as file:
                # In ASCII, which also has a form for bytes of names that are no UTF-8.
                file.write(json.dumps({"version": VERSION, "folders": self.used}).encode("ascii"))
            log.info("listing took %s; it is kept in %s", duration(self.seconds), quoted(self.file))
        except CannotWrite as error:
            log.info("listing took %s; it cannot be kept: %s", duration(self.seconds), error)

    def __str__(self) -> str:
        """For a message; empty if nothing came from the cache."""
        if not self.unchanged or self.file is None:
            return ""
        total = self.unchanged + self.listed
        return f"; {self.unchanged} of {total} folders are unchanged since they were listed ({quoted(self.file)})"


@contextmanager
def listing_cache(root: Path) -> Iterator[ListingCache]:
    """The cache for the folders below a root; of several processes of a run, one lists, and the others wait for it."""
    with ExitStack() as stack:
        file = _file(root)
        if file is not None and ranks().world_size > 1:
            try:
                stack.enter_context(
                    one_at_a_time(file.with_suffix(".lock"), f"listing of {quoted(root)}", then_together=True)
                )
            except CannotWrite:
                file = None
        cache = ListingCache(file, {} if file is None else _read(file))
        yield cache
        cache.save()


def _file(root: Path) -> Path | None:
    """The file of a root; None if there is no place for it."""
    folder = cache_folder("listings")
    return folder and folder / f"{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]}.json"


def _read(file: Path) -> Stored:
    """The listings in a file; none if it is missing, damaged or of another version."""
    try:
        content: Any = json.loads(file.read_bytes())
        return adapter(Stored).validate_python(content["folders"] if content["version"] == VERSION else {})
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return {}
