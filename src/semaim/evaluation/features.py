"""Outputs of a frozen network on images: features of an encoder, or predictions of a classifier.

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
from semaim.data.batches import Batch
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.data.loading import UnreadableImages, evaluation_batches
from semaim.errors import Interrupted, NonFiniteError, UserError
from semaim.runs.context import Run

Array = np.ndarray[Any, Any]
Encode = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Extraction:
    """One pass of a network over images.

    Attributes:
        encode: tensors (B, ...) by kind for a batch of normalised images.
        data: how images are transformed and loaded.
        images: the image set.
        indices: of its images, in the order of the result.
        batch_size: images per batch on each process.
        title: name for the status line.
    """

    encode: Encode
    data: ImageData
    images: ImageSet
    indices: Sequence[int]
    batch_size: int
    title: str

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} images at a time is invalid: it must be positive")

    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        """Tensors (B, ...) by kind for a batch; a pass that reads labels overrides this."""
        return self.encode(batch.images_BCHW)


@dataclass(frozen=True)
class Features:
    """Features of a set of images, in the order of the images; unreadable images are missing.

    Attributes:
        by_kind: arrays (M, ...) by kind, such as "cls" and "mean"; in memory or mapped from a file.
        labels_M: long.
        index_M: long, indices in the set.
    """

    by_kind: Mapping[str, Array]
    labels_M: Tensor
    index_M: Tensor

    def tensor(self, kind: str) -> Tensor:
        """One kind as a tensor in memory."""
        return torch.from_numpy(np.array(self.by_kind[kind]))


def extract(request: Extraction, run: Run) -> Features:
    """Run a pass and return its outputs, in memory; processes share the work and all get the whole result.

    Raises:
        Interrupted: on all processes, after a signal to any of them.
        NonFiniteError: on all processes, for an output that is not finite.
        UserError: if too many images cannot be read.
    """
    parts = [part for share in run.processes.gather(list(extract_share(request, run))) for part in share]
    if not parts:
        raise no_readable_image(request)
    index_M = torch.cat([part.index_M for part in parts])
    order = sort_rows(index_M.numpy(), request.indices)
    labels_M = torch.cat([part.labels_M for part in parts])[order]
    by_kind = {kind: np.concatenate([part.by_kind[kind] for part in parts])[order] for kind in parts[0].by_kind}
    return Features(by_kind, labels_M, index_M[order])


def extract_share(request: Extraction, run: Run) -> Iterator[Features]:
    """The batches of this process. A batch has the same images as with a single process, so features are the same.

    Raises:
        Interrupted: after a signal: the process that received it stops early, the others finish their share first.
        NonFiniteError: likewise, for an output that is not finite.
    """
    processes, data, indices, batch_size = run.processes, request.data, request.indices, request.batch_size
    starts = range(processes.rank * batch_size, len(indices), processes.world_size * batch_size)
    share = [index for start in starts for index in indices[start : start + batch_size]]
    batches = evaluation_batches(data.evaluation(request.images, share), batch_size, data.loading, processes, run.stop)
    unreadable = UnreadableImages(data.max_unreadable, data.unreadable)
    line = StatusLine(processes.is_main, every=max(1, len(share) // batch_size // 4))
    started, done = time.monotonic(), 0
    not_finite: str | None = None  # the first image with such an output
    for batch in batches:
        unreadable.record(batch)
        done += len(batch.index_B) + len(batch.unreadable)
        if len(batch.index_B):
            batch = batch.to(processes.device)
            with torch.no_grad():
                by_kind = {kind: value.cpu().numpy() for kind, value in request.outputs(batch).items()}
            finite_B = np.all([np.isfinite(each).reshape(len(each), -1).all(1) for each in by_kind.values()], axis=0)
            if not finite_B.all():
                not_finite = request.images.name(int(batch.index_B[int(finite_B.argmin())]))
                break
            yield Features(by_kind, batch.labels_B.cpu(), batch.index_B)
        seconds_left = (time.monotonic() - started) / max(done, 1) * (len(share) - done)
        if seconds_left > 2 or line.terminal:
            line.update(f"{request.title}: {done}/{len(share)}, {duration(seconds_left)} left", last=False)
        if run.stop.requested:
            break
    if (signal := run.stop.agree(processes)) is not None:
        raise Interrupted(f"stopped by {signal} during an evaluation, of which nothing is kept")
    if named := [name for name in processes.gather(not_finite) if name is not None]:
        raise NonFiniteError(f"{request.title}: {network_of(run)} computes values that are not finite for {named[0]}")


def network_of(run: Run) -> str:
    """The network that a run evaluates, for messages."""
    checkpoint = run.config.get("checkpoint")
    return "the network" if checkpoint is None else f"the network of checkpoint={checkpoint}"


def no_readable_image(request: Extraction) -> UserError:
    """The error for a pass without a readable image."""
    return UserError(f"no image of the {len(request.indices)} of this evaluation can be read")


def sort_rows(index: Array, indices: Sequence[int]) -> Array:
    """Permutation that sorts the rows of `index`, a shuffled part of `indices`, into the order of `indices`."""
    row_of = {index: row for row, index in enumerate(indices)}
    return np.array([row_of[each] for each in index.tolist()], dtype=np.int64).argsort()
