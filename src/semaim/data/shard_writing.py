"""Writing of shards: files are read ahead by threads and copied as they are, in an order that is shuffled once.

A shard is written under a temporary name and renamed when it is complete; then its part of the index is written beside
it. So whatever ends the program, the same command continues after the last complete shard, and the shards are the same
to the byte.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.core.files import atomic, nearest_existing, read_json, sha256, write_json, writing
from semaim.core.formatting import count, plural, quoted
from semaim.core.locks import holder, opened, taken
from semaim.data.image_sets import FileImages, fingerprint
from semaim.data.shard_checks import Progress, Summary, summary_of
from semaim.data.shard_files import ReadAhead, Written, bytes_in_tar, write_shard
from semaim.data.shards import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    VERSION,
    Index,
    Manifest,
    PartName,
    PartOfManifest,
    missing,
    read_manifest,
)
from semaim.errors import UserError

log = logging.getLogger(__name__)
READERS = 16  # threads that read files: on a network file system, most of the time of a file is waiting
LOCK = ".lock"
SAMPLE = 1000  # files whose sizes tell that of all
TITLES: Mapping[PartName, str] = {"train": "training", "val": "held-out"}


class Plan(TypedDict):
    """What is being written: where from, the names and classes of the parts, and the size of a shard in bytes."""

    source: str
    fingerprints: dict[PartName, str]
    exif: bool
    shard_bytes: int


def write_shards(
    parts: Mapping[PartName, FileImages], classes: Sequence[str], data: str, source: str, out: Path, shard_bytes: int
) -> Summary:
    """Write images to shards, or what is missing of them.

    Args:
        parts: the training images, and the held-out ones.
        classes: names of the classes.
        data, source: choice of data and folder of the images, for messages.
        out: folder of the shards: a new one, an empty one, or one that this function has begun.
        shard_bytes: size of a shard; one with a single image may be larger.

    Raises:
        UserError: if the folder holds anything else, another process writes to it, or an image cannot be read.
        CannotWrite: if the disk is full, or the folder cannot be written.
    """
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise UserError(f"out={quoted(out)} is inside of data.root={quoted(source)}: choose another folder")
    plan: Plan = {
        "source": source,
        "fingerprints": {name: _names_and_classes(images) for name, images in parts.items()},
        "exif": parts["train"].exif,
        "shard_bytes": shard_bytes,
    }
    _check_room(parts, out)
    with _only_writer(out):
        for left in out.glob("*.tar.*.tmp"):  # by a process that was killed
            left.unlink()
        if (out / MANIFEST).exists():
            return _complete(parts, out, plan)
        _begin(out, plan)
        manifest: Manifest = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "data": data,
            "exif": plan["exif"],
            "classes": list(classes),
            "parts": {name: _write_part(name, images, out, shard_bytes) for name, images in parts.items()},
        }
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / UNFINISHED)
    return summary_of(manifest, new=True)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of the folder, which is created if necessary; refuses one that holds anything else."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    own = {MANIFEST, UNFINISHED, LOCK}
    if (others := [entry.name for entry in out.iterdir() if entry.name != LOCK]) and not own & set(others):
        raise UserError(
            f"out={quoted(out)} holds other files ({quoted(min(others))}, ...): choose a new or empty folder"
        )
    with opened(out / LOCK) as lock:
        if not taken(lock, fcntl.LOCK_EX):
            raise UserError(f"out={quoted(out)} is being written by {holder(lock)}: wait for it, or stop it")
        yield


def _begin(out: Path, plan: Plan) -> None:
    """Store the plan; raises UserError if another one was begun."""
    with writing(out / UNFINISHED):
        (out / UNFINISHED).mkdir(exist_ok=True)
    path = out / UNFINISHED / "plan.json"
    begun = read_json(path, Plan, f"delete {quoted(out)}, and type the same command again")
    if begun is None:
        write_json(path, plan)
        return
    _check_same(out, plan, begun["source"], begun["fingerprints"], begun["exif"])
    if begun["shard_bytes"] != plan["shard_bytes"]:
        raise UserError(
            f"out={quoted(out)} was begun with shard_size={begun['shard_bytes']}: type that to continue, or delete the "
            f"folder to begin anew"
        )


def _names_and_classes(images: FileImages) -> str:
    return fingerprint(images.files, images.labels, exif=False)


def _check_same(out: Path, plan: Plan, source: str, fingerprints: Mapping[PartName, str], exif: bool) -> None:
    """Raise UserError if a folder has, or was begun with, other images than those of the plan."""
    here, now = f"out={quoted(out)} has the images of {quoted(source)}", f"data.root={quoted(plan['source'])}"
    anew = "Delete this folder to begin anew, or choose another with out="
    if fingerprints != plan["fingerprints"]:
        moved = "whose files were added, removed, renamed or moved to another class since"
        others = moved if os.path.realpath(source) == os.path.realpath(plan["source"]) else f"and {now} has others"
        raise UserError(f"{here}, {others}. {anew}")
    if exif != plan["exif"]:
        raise UserError(f"{here} with data.source.exif={str(exif).lower()}: choose the same. {anew}")


def _check_room(parts: Mapping[PartName, FileImages], out: Path) -> None:
    """Raise UserError if the shards, estimated by the sizes of some images, do not fit on the disk."""
    needed = 0.0
    for images in parts.values():
        some = np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int)
        sizes = [os.path.getsize(name) for name in map(images.name, some.tolist()) if os.path.exists(name)]
        needed += len(images) * sum(map(bytes_in_tar, sizes)) / max(1, len(sizes))
    done = sum(shard.stat().st_size for shard in out.glob("*.tar"))
    if 0.95 * needed - done > (free := shutil.disk_usage(nearest_existing(out)).free):
        raise UserError(
            f"the shards will take about {count(needed, 'B')}, but out={quoted(out)} has {count(free, 'B')} free: make "
            f"room, or choose a folder on another disk"
        )


def _write_part(name: PartName, images: FileImages, out: Path, shard_bytes: int) -> PartOfManifest:
    """Write the shards of a part that are missing, and its index."""
    # The generator of this class is frozen: the order is the same with any version of NumPy. Shuffled, since who reads
    # whole shards one after the other would else see one class after the other.
    order = np.random.RandomState(0).permutation(len(images))
    written = _written(name, out)
    done = sum(len(each.image) for each in written)
    if done:
        log.info("continuing after %s with %d of %d %s images", plural(len(written), "complete shard"), done,
                 len(images), TITLES[name])  # fmt: skip
    progress = Progress(f"{TITLES[name]} images", len(images), done)
    with _reading_ahead(images, order[done:]) as files:
        while files.first is not None:
            path = out / f"{name}-{len(written):06d}.tar"
            with atomic(path) as file:
                written.append(write_shard(path.name, file, files, shard_bytes, progress.add))
            written[-1].save(_beside(path))
    with atomic(out / f"{name}.npz") as file:
        _index(images, written).write(file)
    return {
        "images": len(images),
        "fingerprint": _names_and_classes(images),
        "index_sha256": sha256(out / f"{name}.npz"),
        "shards": [each.shard for each in written],
    }


@contextmanager
def _reading_ahead(images: FileImages, order: Sequence[int] | np.ndarray[Any, Any]) -> Iterator[ReadAhead]:
    pool = ThreadPoolExecutor(READERS)
    try:
        yield ReadAhead(images, order, pool)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _written(name: PartName, out: Path) -> list[Written]:
    """The complete shards of a part, up to the first that is not."""
    written: list[Written] = []
    while (stored := _beside(path := out / f"{name}-{len(written):06d}.tar")).exists():
        shard = Written.load(stored, path.name)
        if missing(out, [shard.shard]):
            break
        written.append(shard)
    return written


def _beside(shard: Path) -> Path:
    return shard.parent / UNFINISHED / f"{shard.stem}.npz"


def _complete(parts: Mapping[PartName, FileImages], out: Path, plan: Plan) -> Summary:
    """Write shards again that are missing or incomplete in a folder that was complete.

    Raises:
        UserError: if it has the shards of other images, or the content of a file is another than before.
    """
    manifest, new = read_manifest(out), False
    fingerprints = {name: part["fingerprint"] for name, part in manifest["parts"].items()}
    _check_same(out, plan, manifest["source"], fingerprints, manifest["exif"])
    for name, part in manifest["parts"].items():
        for number, shard in enumerate(part["shards"]):
            if not (problem := missing(out, [shard])):
                continue
            log.info("%s: it is written again", problem[0])
            new, path = True, out / shard["file"]
            index = Index.read(out / f"{name}.npz", part["index_sha256"])
            inside = np.flatnonzero(index.shard_N == number)
            order = inside[np.argsort(index.offset_N[inside])]
            with _reading_ahead(parts[name], order) as files, atomic(path) as file:
                progress = Progress(f"images of {shard['file']}", len(order))
                if write_shard(path.name, file, files, math.inf, progress.add).shard != shard:
                    raise UserError(
                        f"{quoted(path)} cannot be written again: the content of its images in data.root="
                        f"{quoted(plan['source'])} is another than before. Delete out={quoted(out)} to begin anew"
                    )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a process that was killed at its end
    return summary_of(manifest, new)


def _index(images: FileImages, written: Sequence[Written]) -> Index:
    """The index of all images, in their order in the folder."""
    order = np.concatenate([each.image for each in written])

    def of(values: Sequence[Sequence[int]], dtype: type) -> np.ndarray[Any, Any]:
        sorted_N: np.ndarray[Any, Any] = np.empty(len(images), dtype)
        sorted_N[order] = np.concatenate(values)
        return sorted_N

    return Index(
        images.files,
        images.labels,
        of([[number] * len(each.image) for number, each in enumerate(written)], np.int32),
        of([each.offset for each in written], np.int64),
        of([each.length for each in written], np.uint32),
        of([each.crc for each in written], np.uint32),
    )
