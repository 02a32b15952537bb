"""What a frozen network says of images: features of an encoder, or answers of a classifier.

Shapes: B images of a batch, M images in all, N tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semaim.core.formatting import duration
from semaim.core.terminal import StatusLine
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.data.loading import UnreadableImages, evaluation_batches
from semaim.errors import Interrupted, UserError
from semaim.runs.context import Run

Array = np.ndarray[Any, Any]
Encode = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Extraction:
    """One pass of a network over images.

    Attributes:
        encode: tensors (B, ...) by kind for a batch of normalised images.
        data: how images are prepared and loaded.
        images: the set.
        indices: which of its images, and in which order the result comes.
        batch_size: images at a time on each process.
        title: what the status line calls this.
    """

    encode: Encode
    data: ImageData
    images: ImageSet
    indices: Sequence[int]
    batch_size: int
    title: str

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} images at a time makes no sense: it must be positive")


@dataclass(frozen=True)
class Features:
    """Features of a set of images, in the order of the images; unreadable images are missing.

    Attributes:
        by_kind: "cls", "mean" or whatever was asked for: (M, ...), in memory or mapped from a file.
        labels_M: long.
        index_M: long, places in the set.
    """

    by_kind: Mapping[str, Array]
    labels_M: Tensor
    index_M: Tensor

    def tensor(self, kind: str) -> Tensor:
        """One kind as a tensor in memory."""
        return torch.from_numpy(np.array(self.by_kind[kind]))


def extract(wanted: Extraction, run: Run) -> Features:
    """What a pass gives, in memory; processes share the work and all get the whole.

    Raises:
        Interrupted: on all processes, after a signal to any of them.
        UserError: if too many images cannot be read.
    """
    parts = [part for mine in run.processes.gather(list(extract_share(wanted, run))) for part in mine]
    if not parts:
        raise nothing_read(wanted)
    index = np.concatenate([part.index_B for part in parts])
    order = in_order(index, wanted.indices)
    labels = np.concatenate([part.labels_B for part in parts])[order]
    by_kind = {kind: np.concatenate([part.by_kind[kind] for part in parts])[order] for kind in parts[0].by_kind}
    return Features(by_kind, torch.from_numpy(labels), torch.from_numpy(index[order]))


@dataclass(frozen=True)
class FeatureBatch:
    """What one batch gave."""

    by_kind: Mapping[str, Array]
    labels_B: Array
    index_B: Array


def extract_share(wanted: Extraction, run: Run) -> Iterator[FeatureBatch]:
    """The batches that fall to this process. They are those of one process alone, so that features are the same.

    Raises:
        Interrupted: at the end, which comes early on a process that got a signal; the others finish what falls to them.
    """
    processes, data, indices, batch_size = run.processes, wanted.data, wanted.indices, wanted.batch_size
    starts = range(processes.rank * batch_size, len(indices), processes.world_size * batch_size)
    mine = [index for start in starts for index in indices[start : start + batch_size]]
    batches = evaluation_batches(
        data.evaluation(wanted.images, mine), batch_size, data.num_workers, processes.device.type == "cuda"
    )
    unreadable = UnreadableImages(data.max_unreadable)
    line, started, seen = StatusLine(processes.is_main, every=max(1, len(mine) // batch_size // 4)), time.monotonic(), 0
    for batch in batches:
        unreadable.record(batch)
        seen += len(batch.index_B) + len(batch.unreadable)
        if len(batch.index_B):
            batch = batch.to(processes.device)
            with torch.no_grad():
                by_kind = {kind: value.cpu().numpy() for kind, value in wanted.encode(batch.images_BCHW).items()}
            yield FeatureBatch(by_kind, batch.labels_B.cpu().numpy(), batch.index_B.numpy())
        left = (time.monotonic() - started) / max(seen, 1) * (len(mine) - seen)
        if left > 2 or line.terminal:
            line.update(f"{wanted.title}: {seen}/{len(mine)} images, {duration(left)} left", last=False)
        if run.stop.requested:
            break
    if (signal := run.stop.agree(processes)) is not None:
        raise Interrupted(f"stopped by {signal} during an evaluation")


def nothing_read(wanted: Extraction) -> UserError:
    """The error for a pass of which nothing is left."""
    return UserError(f"no image of the {len(wanted.indices)} of this evaluation can be read")


def in_order(index: Array, indices: Sequence[int]) -> Array:
    """Rows of `index`, which come in any order, in the order of `indices`."""
    place = {asked: row for row, asked in enumerate(indices)}
    return np.array([place[found] for found in index.tolist()], dtype=np.int64).argsort()
