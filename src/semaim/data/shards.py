"""Image files in uncompressed tar files ("shards") that WebDataset can read, with an index for random access.

A folder of shards holds `shards.json`, written last: what the shards are, with their sizes and checksums; for each part
(train, val) its index, `<part>.npz`; and the shards, `<part>-000000.tar` and so on. Member `000000042.jpg` is the file
of image 42 of the part, in the order of the folder that the shards are from, and `000000042.cls` its class index.
docs/data.md describes the format, `semaim.data.shard_writing` writes it.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.config.source_run import value_text
from semaim.core.files import read_json, sha256
from semaim.core.formatting import plural, program, quoted
from semaim.data.image_sets import UNLABELLED, Splits, fingerprint
from semaim.data.names import Names
from semaim.data.pixels import Picture
from semaim.data.reading import read_rgb
from semaim.errors import DamagedFile, UserError

log = logging.getLogger(__name__)
MANIFEST = "shards.json"
UNFINISHED = ".unfinished"  # folder of what is needed to go on writing
VERSION = 1
MAX_OPEN = 32  # shards that a process has open
PartName = Literal["train", "val"]
Integers = np.ndarray[Any, np.dtype[np.int64]]


class ShardFile(TypedDict):
    """A shard: its name, size in bytes, number of images and SHA-256."""

    file: str
    bytes: int
    images: int
    sha256: str


class PartOfManifest(TypedDict):
    """The shards of a part, and the SHA-256 of its index."""

    images: int
    fingerprint: str
    index_sha256: str
    shards: list[ShardFile]


class Manifest(TypedDict):
    """Content of `shards.json`.

    `source` is the folder that the shards were written from, `data` the choice of data that read it, `exif` whether
    its images are turned.
    """

    format: str
    version: int
    source: str
    data: str
    exif: bool
    classes: list[str]
    parts: dict[PartName, PartOfManifest]


FORMAT = "semaim image shards"


@dataclass(frozen=True)
class Index:
    """Where the N images of a part are.

    Attributes:
        names: their paths in the folder that they are from.
        labels_N: their class indices; None without labels.
        shard_N: indices of their shards.
        offset_N, length_N: of their bytes in the shard.
        crc_N: CRC-32 of their bytes.
    """

    names: Names
    labels_N: Integers | None
    shard_N: Integers
    offset_N: Integers
    length_N: Integers
    crc_N: Integers

    def write(self, file: Any) -> None:
        """Write to an open file."""
        arrays: dict[str, Any] = {} if self.labels_N is None else {"labels": self.labels_N}
        arrays |= {"shard": self.shard_N, "offset": self.offset_N, "length": self.length_N, "crc": self.crc_N}
        np.savez(file, names=self.names.joined, **arrays)

    @classmethod
    def read(cls, path: Path, checksum: str) -> Index:
        """Read from a file.

        Raises:
            DamagedFile: if it is missing or has another checksum.
        """
        try:
            if sha256(path) != checksum:
                raise ValueError("its SHA-256 is not the one in shards.json")
            with np.load(path) as stored:
                places = [stored[key] for key in ("shard", "offset", "length", "crc")]
                labels = stored["labels"] if "labels" in stored.files else None
                return cls(Names(stored["names"]), labels, *places)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DamagedFile(path, reason, "copy it again, or write the shards again") from error


class _Open:
    """An open shard, closed when nothing refers to it any more; several threads may read it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=MAX_OPEN)
def _opened(path: str, _checksum: str) -> _Open:
    """A shard, kept open; workers that are forked later read through descriptors of their own."""
    return _Open(path)


class ShardImages:
    """Images in shards, decoded when read.

    Args:
        root: folder of the shards.
        shards: the shards.
        index: where the images are.
        exif: turn images as their EXIF orientation says.
    """

    def __init__(self, root: Path, shards: Sequence[ShardFile], index: Index, exif: bool) -> None:
        self.root = root
        self.shards = shards
        self.index = index
        self.exif = exif

    def __len__(self) -> int:
        return len(self.index.names)

    def encoded(self, index: int) -> bytes:
        """The file of an image.

        Raises:
            UserError: if the shard does not hold it as it was written.
            OSError: if the shard cannot be read.
        """
        place = self.index
        shard = self.shards[place.shard_N[index]]
        data = _opened(str(self.root / shard["file"]), shard["sha256"]).read(
            int(place.offset_N[index]), int(place.length_N[index])
        )
        if len(data) != place.length_N[index] or zlib.crc32(data) != place.crc_N[index]:
            raise UserError(f"its bytes in the shard are not those that were written: {_verify(self.root)} looks "
                            f"for all damage")  # fmt: skip
        return data

    def read(self, index: int) -> Picture:
        return read_rgb(self.encoded(index), self.exif)

    def label(self, index: int) -> int:
        return UNLABELLED if self.index.labels_N is None else int(self.index.labels_N[index])

    def name(self, index: int) -> str:
        return str(self.root / self.shards[self.index.shard_N[index]]["file"] / self.index.names[index])

    def fingerprint(self) -> str:
        return fingerprint(self.index.names, self.index.labels_N, self.exif)

    def place(self) -> str:
        return os.path.realpath(self.root)

    def masked(self) -> Integers:
        return np.arange(0)

    def mask(self, index: int) -> None:
        return None


def shards(root: str, exif: bool | None = None) -> Splits:
    """Images in shards that `semaim shard` has written; docs/data.md describes them.

    Args:
        root: their folder.
        exif: turn images as their EXIF orientation says; None as the data that the shards were written from.

    Raises:
        UserError: if there are no shards, or some are missing or incomplete.
    """
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        raise UserError(f"data.root={quoted(root)} is not a folder: set data.root to the folder that holds the shards")
    if not is_sharded(folder):
        raise UserError(
            f"data.root={quoted(root)} holds no shards: {program('shard', 'data.root=<images>', 'out=<shards>')} "
            f"writes some, and data=folder reads a folder of images"
        )
    manifest = read_manifest(folder)
    all_shards = shards_of(manifest)
    if problems := missing(folder, all_shards):
        more = f" ({len(problems)} of {len(all_shards)} shards have such a problem)" if len(problems) > 1 else ""
        raise UserError(
            f"data.root={quoted(root)}: {problems[0]}{more}: copy it again, or write it again with "
            f"{command_of(manifest, folder)}"
        )
    exif = manifest["exif"] if exif is None else exif
    sets = {name: _part(folder, name, part, exif) for name, part in manifest["parts"].items()}
    train, val = sets["train"], sets.get("val")
    classes = manifest["classes"]
    log.info(
        "data.root=%s: %s of %s, %s%s%s",
        quoted(root),
        plural(len(all_shards), "shard"),
        quoted(manifest["source"]),
        plural(len(train), "image"),
        f" of {plural(len(classes), 'class', 'es')}" if classes else "",
        f", {len(val)} held out" if val is not None else "",
    )
    return Splits(train, None if train.index.labels_N is None else train, val, classes)


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds shards, finished or not."""
    return (folder / MANIFEST).exists() or (folder / UNFINISHED).is_dir()


def read_manifest(folder: Path) -> Manifest:
    """What a folder of shards holds.

    Raises:
        UserError: if the shards are unfinished, damaged or of a newer version.
    """
    manifest = read_json(folder / MANIFEST, Manifest, "write the shards again")
    if manifest is None:
        raise UserError(
            f"{quoted(folder)} holds shards that are not finished: type the command that writes them (semaim shard ... "
            f"out={quoted(folder)}) again, it continues"
        )
    if manifest["format"] != FORMAT or manifest["version"] > VERSION:
        raise DamagedFile(folder / MANIFEST, f"version {manifest['version']}", "update semaim")
    return manifest


def shards_of(manifest: Manifest) -> list[ShardFile]:
    """The shards of all parts."""
    return [shard for part in manifest["parts"].values() for shard in part["shards"]]


def missing(folder: Path, shards: Sequence[ShardFile]) -> list[str]:
    """Problems of shards that their sizes tell; empty if there are none."""
    problems = []
    for shard in shards:
        path = folder / shard["file"]
        try:
            found = path.stat().st_size
        except OSError as error:
            problems.append(f"{quoted(path)} is missing ({error.strerror})")
            continue
        if found != shard["bytes"]:
            problems.append(f"{quoted(path)} has {found} bytes and was written with {shard['bytes']}")
    return problems


def command_of(manifest: Manifest, folder: Path) -> str:
    """The command that has written shards, and writes what is missing."""
    return program("shard", f"data={manifest['data']}", f"data.root={value_text(manifest['source'])}", f"out={folder}")


def _part(folder: Path, name: PartName, part: PartOfManifest, exif: bool) -> ShardImages:
    return ShardImages(folder, part["shards"], Index.read(folder / f"{name}.npz", part["index_sha256"]), exif)


def _verify(folder: Path) -> str:
    return program("shard", "--verify", f"out={folder}")
