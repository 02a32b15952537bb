"""A shard: a tar file of images and their labels, written from files that threads read ahead.

WebDataset takes files whose names agree up to the first dot for one sample: `000000042.jpg` and `000000042.cls`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from semaim.core.files import HashingWriter, atomic
from semaim.core.formatting import quoted
from semaim.data.image_sets import FileImages
from semaim.data.shards import ShardFile
from semaim.errors import UserError

AHEAD = 64  # files
BLOCK, END = tarfile.BLOCKSIZE, 2 * tarfile.RECORDSIZE  # bytes of a tar file: of a header, and at most of its end


@dataclass
class Written:
    """A shard, and the places of its images in the order of their bytes."""

    shard: ShardFile
    image: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    crc: list[int] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Store beside the shard, so that writing can go on after it."""
        places = {key: getattr(self, key) for key in ("image", "offset", "length", "crc")}
        with atomic(path) as file:
            np.savez(file, **places, bytes=self.shard["bytes"], sha256=self.shard["sha256"])

    @classmethod
    def load(cls, path: Path, name: str) -> Written:
        """What was stored beside the shard of a name."""
        with np.load(path) as stored:
            places = [stored[key].tolist() for key in ("image", "offset", "length", "crc")]
            sizes = {"bytes": int(stored["bytes"]), "images": len(places[0]), "sha256": str(stored["sha256"])}
        return cls(cast(ShardFile, {"file": name} | sizes), *places)


def bytes_in_tar(length: int) -> int:
    """Bytes that an image and its label take in a tar file."""
    return 3 * BLOCK + -(-length // BLOCK) * BLOCK


class ReadAhead:
    """Files in a given order, read ahead by threads.

    Args:
        images: the files.
        order: indices of those to read.
        pool: the threads.
    """

    def __init__(self, images: FileImages, order: Iterable[int], pool: ThreadPoolExecutor) -> None:
        self.images, self.order, self.pool = images, iter(order), pool
        self.pending: deque[tuple[int, Future[bytes]]] = deque()
        for _ in range(AHEAD):
            self._request()

    def _request(self) -> None:
        if (index := next(self.order, None)) is not None:
            self.pending.append((int(index), self.pool.submit(self.images.encoded, int(index))))

    @property
    def first(self) -> tuple[int, bytes] | None:
        """The next image and its file; None if there are no more. Raises UserError if it cannot be read."""
        if not self.pending:
            return None
        index, reading = self.pending[0]
        try:
            return index, reading.result()
        except OSError as error:
            raise UserError(
                f"{quoted(self.images.name(index))} cannot be read ({error.strerror}): make it readable, or "
                f"replace it; then the same command continues. (Or remove it, and begin anew with another out=)"
            ) from error

    def drop(self) -> None:
        """Go on to the next one."""
        self.pending.popleft()
        self._request()


def write_shard(name: str, file: BinaryIO, files: ReadAhead, limit: float, count: Callable[[int], None]) -> Written:
    """Write images to a tar file until the next one would make it larger than a limit; at least one.

    Args:
        name: of the shard.
        file: the open tar file.
        files: the images; the first that does not fit stays there.
        limit: in bytes.
        count: is called with the size of each image in bytes.
    """
    hashing = HashingWriter(file)
    written = Written({"file": name, "bytes": 0, "images": 0, "sha256": ""})
    labels, names = files.images.labels, files.images.files
    offset = 0
    while (first := files.first) is not None:
        index, data = first
        if written.image and offset + bytes_in_tar(len(data)) > limit - END:
            break
        label = b"" if labels is None else _member(f"{index:09d}.cls", str(labels[index]).encode())
        sample = _member(f"{index:09d}.{_extension(names[index])}", data) + label
        hashing.write(sample)
        written.image.append(index)
        written.offset.append(offset + BLOCK)
        written.length.append(len(data))
        written.crc.append(zlib.crc32(data))
        offset += len(sample)
        files.drop()
        count(len(data))
    hashing.write(bytes(2 * BLOCK + -(offset + 2 * BLOCK) % tarfile.RECORDSIZE))
    sizes = {"bytes": file.tell(), "images": len(written.image), "sha256": hashing.hash.hexdigest()}
    return replace(written, shard=cast(ShardFile, written.shard | sizes))


def _member(name: str, data: bytes) -> bytes:
    """A file in a tar file, without owner and time, so that equal images make equal shards."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _extension(file: str) -> str:
    """The extension of a member, which WebDataset's decoders know: lower case, jpg for JPEG."""
    return {"jpeg": "jpg"}.get(found := file.rpartition(".")[2].lower(), found)
