"""Feature cache on disk: features are computed once per encoder and image set, and mapped, so that they need no memory.

A folder holds `cls.npy`, `mean.npy` (M, D) in float32 and `labels.npy`, `index.npy` (M,), and their checksums, in the
format of the sha256sum command. It is written under a temporary name and renamed when it is complete. What is missing
or changed since is computed again.

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

from semaim.core.files import fsync_folder, sha256, write_text, writing
from semaim.core.formatting import count
from semaim.evaluation.features import Extraction, Features, extract, extract_share, no_readable_image, sort_rows
from semaim.runs.context import Run

log = logging.getLogger(__name__)
CHECKSUMS = "SHA256SUMS"  # in the format of the sha256sum command
ROWS_PER_COPY = 65536  # rows
STALE_SECONDS = 7 * 24 * 3600


def cached_features(cache: Path | None, fingerprint: str, request: Extraction, run: Run) -> Features:
    """As `extract`, for features (M, D) in float32, stored in files for later runs.

    Features that lack unreadable images, or are damaged, are computed again the next time.

    Args:
        cache: folder of the cache (all processes must see it); None extracts to memory and stores nothing.
        fingerprint: of what the pass computes. The files are named by it, the images and their transform, but not by
            the batch size, which changes only the last bits.
        request: the pass.
        run: the run.
    """
    transform = repr(request.data.eval_transform)
    if cache is None or "<" in transform:  # the repr of a function does not identify what it does
        return extract(request, run)
    chosen = np.asarray(request.indices, dtype=np.int64).tobytes()
    images = (request.images.fingerprint(), request.images.place())  # another folder may hold others of the same names
    parts = (fingerprint.encode(), *map(os.fsencode, images), chosen, transform.encode())
    folder = cache / hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    images_there = run.processes.broadcast(run.processes.is_main and _images_in(folder))
    if images_there == len(request.indices):
        log.info("%s: features were computed before (%s)", request.title, folder)
    else:
        if images_there is None and folder.exists():
            log.warning("%s: the features in %s are damaged, or have no checksums: they are computed again",
                        request.title, folder)  # fmt: skip
        _compute(folder, request, run)
    mapped = {file.name[:-4]: np.load(file, mmap_mode="c") for file in sorted(folder.glob("*.npy"))}
    labels, index = (torch.from_numpy(np.array(mapped.pop(name))) for name in ("labels", "index"))
    return Features(mapped, labels, index)


def _images_in(folder: Path) -> int | None:
    """The number of images whose features are stored; None if the files are damaged, or not there."""
    try:
        intact = (folder / CHECKSUMS).read_text() == _checksums(folder)
        return len(np.load(folder / "index.npy", mmap_mode="r")) if intact else None
    except (OSError, UnicodeDecodeError):
        return None


def _checksums(folder: Path) -> str:
    return "".join(f"{sha256(file)}  {file.name}\n" for file in sorted(folder.glob("*.npy")))


def _compute(folder: Path, request: Extraction, run: Run) -> None:
    processes = run.processes
    if processes.is_main:
        for leftover in folder.parent.glob("*.tmp"):  # from killed processes
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{processes.broadcast(uuid.uuid4().hex)}.tmp")
    try:
        with writing(folder):
            temporary.mkdir(parents=True, exist_ok=True)
        _write_share(temporary, request, run)
        processes.barrier()
        if processes.is_main:
            with writing(folder):
                _merge(temporary, request, processes.world_size)
                if _images_in(folder) != len(request.indices):  # else another run has written it meanwhile
                    shutil.rmtree(folder, ignore_errors=True)
                    temporary.rename(folder)
                    fsync_folder(folder.parent)
        processes.barrier()
    finally:
        if processes.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    log.info("%s: features are kept in %s (%s); delete them when you like", request.title, folder, count(size, "B"))


def _write_share(folder: Path, request: Extraction, run: Run) -> None:
    """Append this process's batches to its own files: raw rows for each kind, labels and indices in one .npz."""
    labels, index = [], []
    for part in extract_share(request, run):
        for kind, rows in part.by_kind.items():
            path = folder / f"{run.processes.rank}.{kind}.raw"
            with writing(path), open(path, "ab") as file:
                file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        labels.append(part.labels_M)
        index.append(part.index_M)
    if index:
        path = folder / f"{run.processes.rank}.npz"
        with writing(path):
            np.savez(path, labels=torch.cat(labels).numpy(), index=torch.cat(index).numpy())


def _merge(folder: Path, request: Extraction, processes: int) -> None:
    """Merge the files of all processes into one per kind, in the order of the pass."""
    files = {rank: folder / f"{rank}.npz" for rank in range(processes)}
    by_rank = {rank: dict(np.load(file)) for rank, file in files.items() if file.exists()}
    if not by_rank:
        raise no_readable_image(request)
    index = np.concatenate([part["index"] for part in by_rank.values()])
    order = sort_rows(index, request.indices)
    owner = np.concatenate([np.full(len(part["index"]), rank) for rank, part in by_rank.items()])[order]
    row = np.concatenate([np.arange(len(part["index"])) for part in by_rank.values()])[order]
    for key in ("labels", "index"):
        np.save(folder / f"{key}.npy", np.concatenate([part[key] for part in by_rank.values()])[order])
    for kind in sorted({file.name.split(".")[1] for file in folder.glob("*.raw")}):
        raw = {
            rank: np.memmap(folder / f"{rank}.{kind}.raw", np.float32, "r").reshape(len(part["index"]), -1)
            for rank, part in by_rank.items()
        }
        width = next(iter(raw.values())).shape[1]
        whole = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.float32, (len(order), width))
        with open(folder / f"{kind}.npy", "rb+") as mapped:  # a full disk is an error here, and a kill during the copy
            os.posix_fallocate(mapped.fileno(), 0, os.fstat(mapped.fileno()).st_size)
        for start in range(0, len(order), ROWS_PER_COPY):
            block = slice(start, start + ROWS_PER_COPY)
            for rank, rows in raw.items():
                rows_of_rank = np.flatnonzero(owner[block] == rank)
                whole[start + rows_of_rank] = rows[row[block][rows_of_rank]]
        whole.flush()
    for leftover in [*folder.glob("*.raw"), *folder.glob("*.npz")]:
        leftover.unlink()
    write_text(folder / CHECKSUMS, _checksums(folder))
    for file in folder.iterdir():  # on disk before the folder is renamed
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
