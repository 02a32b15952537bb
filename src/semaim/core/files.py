"""Atomic file writes: a kill at any time leaves either the old file or the new one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def fsync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file, which is flushed to disk and renamed to `path` if the block raises no exception."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None if there is no such file."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


class HashingWriter:
    """A file wrapper that computes the SHA-256 of the written bytes, so that the file need not be read back.

    Args:
        file: the wrapped file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.flush: Callable[[], None] = file.flush

    def write(self, data: bytes | memoryview) -> int:
        self.hash.update(data)
        return self.file.write(data)


def sha256(path: Path) -> str:
    """SHA-256 checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, else its nearest existing parent."""
    return next(ancestor for ancestor in (path.absolute(), *path.absolute().parents) if ancestor.exists())


def writable(path: Path) -> bool:
    """Whether a file or folder can be written, or created if it does not exist."""
    ancestor = nearest_existing(path)
    return os.access(ancestor, os.W_OK) and (ancestor == path.absolute() or ancestor.is_dir())
