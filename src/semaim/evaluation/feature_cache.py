"""Features on disk: computed once for an encoder and a set of images, read in parts, so that any number of images fits.

A folder holds `cls.npy`, `mean.npy` (M, D) in float32 and `labels.npy`, `index.npy` (M,). It is made under another name
and appears complete, by a rename.

Shapes: M images, D width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
import uuid
from pathlib import Path

import numpy as np
import torch

from semaim.core.files import fsync_folder
from semaim.core.formatting import count
from semaim.evaluation.features import Extraction, Features, extract, extract_share, in_order, nothing_read
from semaim.runs.context import Run

log = logging.getLogger(__name__)
COPIED_AT_ONCE = 65536  # rows
FORGOTTEN_SECONDS = 7 * 24 * 3600


def stored(folder: Path | None, fingerprint: str, wanted: Extraction, run: Run) -> Features:
    """As `extract`, for features (M, D) in float32, in files that are kept for the next time.

    Features that lack unreadable images are computed anew the next time.

    Args:
        folder: where features are kept (all processes must see it); None extracts to memory and keeps nothing.
        fingerprint: of what the pass computes. With the images and their transform it names the files; the batch size,
            which changes the last bits, does not.
        wanted: the pass.
        run: surroundings.
    """
    how = repr(wanted.data.eval_transform)
    if folder is None or "<" in how:  # a transform with a function in it does not say what it does
        return extract(wanted, run)
    chosen = np.asarray(wanted.indices, dtype=np.int64).tobytes()
    parts = (fingerprint.encode(), wanted.images.fingerprint().encode(), chosen, how.encode())
    place = folder / hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    if run.processes.broadcast(_is_whole(place, len(wanted.indices))):
        log.info("%s: features were computed before (%s)", wanted.title, place)
    else:
        _compute(place, wanted, run)
    mapped = {file.name[:-4]: np.load(file, mmap_mode="c") for file in sorted(place.glob("*.npy"))}
    labels, index = (torch.from_numpy(np.array(mapped.pop(name))) for name in ("labels", "index"))
    return Features(mapped, labels, index)


def _is_whole(place: Path, images: int) -> bool:
    return place.exists() and len(np.load(place / "index.npy", mmap_mode="r")) == images


def _compute(place: Path, wanted: Extraction, run: Run) -> None:
    processes = run.processes
    if processes.is_main:
        for left_over in place.parent.glob("*.tmp"):  # of processes that were killed
            if time.time() - left_over.stat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(left_over, ignore_errors=True)
    temporary = place.with_name(f"{place.name}.{processes.broadcast(uuid.uuid4().hex)}.tmp")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        _write_share(temporary, wanted, run)
        processes.barrier()
        if processes.is_main:
            _merge(temporary, wanted, processes.world_size)
            if not _is_whole(place, len(wanted.indices)):  # else another run was faster
                shutil.rmtree(place, ignore_errors=True)
                temporary.rename(place)
                fsync_folder(place.parent)
        processes.barrier()
    finally:
        if processes.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
    size = sum(file.stat().st_size for file in place.iterdir())
    log.info("%s: features are kept in %s (%s); delete them when you like", wanted.title, place, count(size, "B"))


def _write_share(folder: Path, wanted: Extraction, run: Run) -> None:
    """Append this process's batches to files of its own: raw rows of each kind, and what is small in one .npz."""
    labels, index = [], []
    for part in extract_share(wanted, run):
        for kind, rows in part.by_kind.items():
            with open(folder / f"{run.processes.rank}.{kind}.raw", "ab") as file:
                file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        labels.append(part.labels_B)
        index.append(part.index_B)
    if index:
        np.savez(folder / f"{run.processes.rank}.npz", labels=np.concatenate(labels), index=np.concatenate(index))


def _merge(folder: Path, wanted: Extraction, processes: int) -> None:
    """Bring the files of all processes into one per kind, in the order of the pass."""
    small = {rank: dict(np.load(folder / f"{rank}.npz")) for rank in range(processes)
             if (folder / f"{rank}.npz").exists()}  # fmt: skip
    if not small:
        raise nothing_read(wanted)
    index = np.concatenate([part["index"] for part in small.values()])
    order = in_order(index, wanted.indices)
    owner = np.concatenate([np.full(len(part["index"]), rank) for rank, part in small.items()])[order]
    row = np.concatenate([np.arange(len(part["index"])) for part in small.values()])[order]
    for key in ("labels", "index"):
        np.save(folder / f"{key}.npy", np.concatenate([part[key] for part in small.values()])[order])
    for kind in sorted({file.name.split(".")[1] for file in folder.glob("*.raw")}):
        raw = {
            rank: np.memmap(folder / f"{rank}.{kind}.raw", np.float32, "r").reshape(len(part["index"]), -1)
            for rank, part in small.items()
        }
        width = next(iter(raw.values())).shape[1]
        whole = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.float32, (len(order), width))
        for start in range(0, len(order), COPIED_AT_ONCE):
            here = slice(start, start + COPIED_AT_ONCE)
            for rank, rows in raw.items():
                of_rank = np.flatnonzero(owner[here] == rank)
                whole[start + of_rank] = rows[row[here][of_rank]]
        whole.flush()
    for left_over in [*folder.glob("*.raw"), *folder.glob("*.npz")]:
        left_over.unlink()
    for file in folder.iterdir():  # on disk before the folder gets its name
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
