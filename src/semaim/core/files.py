"""Reading and writing of small files.

Writes are atomic: a kill or a full disk at any time leaves either the old file or the new one. What is read is checked
against a declared shape. Errors name the file and say what to do.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from semaim.errors import CannotWrite, DamagedFile, NotReadable, UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

log = logging.getLogger(__name__)
T = TypeVar("T")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write a file in this block; raises CannotWrite, which names the file, for an error of the operating system."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch raises a RuntimeError during the OSError
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise CannotWrite(path, cause) from error


@contextmanager
def if_possible() -> Iterator[None]:
    """Write in this block what is not required to go on; if it cannot be written, this is a warning."""
    try:
        yield
    except CannotWrite as error:
        log.warning("%s", error)


def fsync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file, which is flushed to disk and renamed to `path` if the block raises no exception.

    Raises:
        CannotWrite: if there is no space, no permission, ...; the former file is intact.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
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
    with atomic(path) as file:
        file.write(as_json(value, indent=2))


def as_json(value: Any, indent: int | None = None) -> bytes:
    """A line or lines of JSON in UTF-8; bytes of file names that are no UTF-8 are written out (`\\udcff`).

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\\\u{ord(found[0]):04x}", text).encode() + b"\n"


def read_json(path: Path, shape: type[T], remedy: str = "restore it, or move it away") -> T | None:
    """The value in a JSON file, or None if there is no such file.

    Args:
        path: the file.
        shape: type of the value: built from dict, list, TypedDict, dataclasses, ... as pydantic reads them.
        remedy: what to do if the file is damaged, for the message.

    Raises:
        NotReadable: if this user may not read it.
        DamagedFile: if it is not JSON or has another shape.
    """
    from pydantic import ValidationError

    try:
        value: T = adapter(shape).validate_json(no_pipe(path).read_bytes(), strict=True)  # type: ignore[arg-type]
        return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise NotReadable(path) from error
    except OSError as error:
        raise DamagedFile(path, str(error.strerror), remedy) from error
    except ValidationError as error:
        raise DamagedFile(path, first_problem(error), remedy) from error


def no_pipe(path: Path) -> Path:
    """The path of a file to open; raises OSError for a pipe, since opening it would wait without end."""
    if path.is_fifo():
        raise OSError(errno.ESPIPE, "it is a pipe", str(path))
    return path


@functools.cache
def adapter(shape: Any) -> TypeAdapter[Any]:
    """pydantic's reader of a type."""
    from pydantic import TypeAdapter  # here, since not all commands read files

    return TypeAdapter(shape)


def first_problem(error: Any) -> str:
    """The first problem of a pydantic.ValidationError, in one line."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*[".".join(map(str, problem["loc"]))] * bool(problem["loc"]), problem["msg"]])


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
