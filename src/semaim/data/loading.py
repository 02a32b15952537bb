"""Assignment of images to training steps, and data loading.

The images of a step are a pure function of (seed, step), and the augmentation of an image is one of (seed, epoch,
index). Therefore training can continue within an epoch without loader state, results do not depend on the number of
workers, and several processes together use the same images as a single one.

Shapes: B images of one micro-batch of one process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.core.seeding import derive_seed, seeded
from semaim.core.signals import StopRequest
from semaim.data.batches import Batch, Sample, collate
from semaim.data.image_sets import ImageSet, read_image
from semaim.data.pixels import Transform, on_device
from semaim.data.reading import Unreadable, log_unreadable
from semaim.data.transforms import EVALUATION, TRAINING, transformed
from semaim.data.workers import Loading, WorkerBatches, fitting, load
from semaim.errors import BatchTooLarge, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One image of a step, as requested from a worker.

    Attributes:
        index: index in the data set.
        epoch: epoch of the step.
        row: index in the step's whole batch.
    """

    index: int
    epoch: int
    row: int


@dataclass(frozen=True)
class StepPlan:
    """Assignment of images to training steps and processes.

    Args:
        dataset_size: images in the data set.
        batch_size: images per optimizer step, over all processes and micro-batches.
        seed: the run's seed.
        rank, world_size: index of this process and number of processes.
        accumulate: micro-batches per step.

    Raises:
        UserError: if the batch is larger than the data set or does not divide evenly.
    """

    dataset_size: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"trainer.batch_size={self.batch_size} must be at least 1")
        if self.batch_size > self.dataset_size:
            images = plural(self.dataset_size, "training image")
            raise BatchTooLarge(f"trainer.batch_size={self.batch_size} is more than the {images}", self.dataset_size)
        if self.batch_size % (self.world_size * self.accumulate):
            raise UserError(
                f"trainer.batch_size={self.batch_size} must be divisible by processes x trainer.accumulate = "
                f"{self.world_size} x {self.accumulate}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch; the images of an incomplete last batch are not used in that epoch."""
        return self.dataset_size // self.batch_size

    @property
    def micro_batch_size(self) -> int:
        """Images per micro-batch of one process."""
        return self.batch_size // (self.world_size * self.accumulate)

    def micro_batches(self, step: int) -> list[list[Item]]:
        """The micro-batches of this process at a step."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        shuffled = _shuffled(self.seed, epoch, self.dataset_size)
        size = self.micro_batch_size
        batches = []
        for micro in range(self.accumulate):
            first = (micro * self.world_size + self.rank) * size
            rows = range(first, first + size)
            start = in_epoch * self.batch_size
            batches.append([Item(int(shuffled[start + row]), epoch, row) for row in rows])
        return batches


@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "shuffle", epoch))
    return torch.randperm(size, generator=generator)


class TrainingImages(Dataset[Any]):
    """Augmented images; an unreadable image is replaced by the next readable one."""

    MAX_IN_A_ROW = 100

    def __init__(self, images: ImageSet, transform: Transform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitem__(self, item: Item) -> Sample:
        unreadable = []
        for offset in range(min(self.MAX_IN_A_ROW, len(self.images))):
            index = (item.index + offset) % len(self.images)
            try:
                image = read_image(self.images, index)
            except Unreadable as error:
                unreadable.append((self.images.name(index), str(error)))
                continue
            seed = derive_seed(self.seed, "augmentation", item.epoch, item.index)
            with seeded(seed, restore=get_worker_info() is None):  # in a worker nothing else is random
                tensor = transformed(self.transform, image, self.images.name(index), TRAINING)
            return Sample(tensor, self.images.label(index), index, item.row, seed, unreadable)
        raise UserError(f"{plural(len(unreadable), 'image')} in a row cannot be read: {first_reasons(unreadable)}")


@dataclass(frozen=True)
class TrainingData:
    """Training images and loading options.

    Attributes:
        images: the image set.
        transform: augmentation.
        loading: how batches are loaded.
        max_unreadable: maximum number of distinct unreadable images, which are skipped.
        accept_changes: continue a run although its images are not those it was started with.
        held_out: the images that measure it, if there are any.
        unreadable: names of unreadable images that are logged already, also by passes over the held-out ones.
    """

    images: ImageSet
    transform: Transform
    loading: Loading
    max_unreadable: int
    accept_changes: bool = False
    held_out: ImageSet | None = None
    unreadable: set[str] = field(default_factory=set)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the images as checkpoints hold them, computed once."""
        held_out = "" if self.held_out is None else self.held_out.fingerprint()
        return {"fingerprint": self.images.fingerprint(), "held_out": held_out}


class EvaluationImages(Dataset[Any]):
    """Images without augmentation, by index; an unreadable image yields None and is dropped from the batch."""

    def __init__(self, images: ImageSet, transform: Transform, indices: Sequence[int]) -> None:
        self.images = images
        self.transform = transform
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> Sample:
        index = self.indices[row]
        name, label = self.images.name(index), self.images.label(index)
        try:
            image = read_image(self.images, index)
        except Unreadable as error:
            return Sample(None, label, index, row, 0, [(name, str(error))])
        return Sample(transformed(self.transform, image, name, EVALUATION), label, index, row, 0, [])


def first_reasons(unreadable: Iterable[tuple[str, str]]) -> str:
    """The first three unreadable images with their reasons, for messages."""
    return "; ".join(f"{name!r} ({reason})" for name, reason in islice(unreadable, 3))


def batches_of(dataset: TrainingImages | EvaluationImages) -> WorkerBatches:
    """Whole batches of a data set, as workers load them."""
    return WorkerBatches(dataset, partial(collate, normalise=on_device(dataset.transform)))


class UnreadableImages:
    """Records unreadable images and ends the run if there are too many.

    Args:
        limit: maximum number of distinct unreadable images per process.
        told: names of those that are logged; the passes over the same data share it, so each is logged once.
    """

    def __init__(self, limit: int, told: set[str] | None = None) -> None:
        self.limit = limit
        self.told = set() if told is None else told
        self.reasons: dict[str, str] = {}  # by name

    def record(self, batch: Batch) -> None:
        """Log each unreadable image of a batch once.

        Raises:
            UserError: if there are more than the limit.
        """
        for name, reason in batch.unreadable:
            if name not in self.reasons:
                self.reasons[name] = reason
                log_unreadable(name, reason, self.told)
        if len(self.reasons) > self.limit:
            raise UserError(
                f"{plural(len(self.reasons), 'image')} cannot be read, more than data.max_unreadable={self.limit}: "
                f"{first_reasons(self.reasons.items())}. The log names all. Repair or remove them, or raise "
                f"data.max_unreadable"
            )


def training_batches(
    dataset: TrainingImages,
    plan: StepPlan,
    steps: range,
    loading: Loading,
    processes: Processes,
    stop: StopRequest,
) -> Iterator[Batch]:
    """The micro-batches of the given steps in order, prefetched by one set of workers for all epochs; collective.

    Raises:
        UserError: if the batches of the workers do not fit into shared memory: with fewer, training could take days
            longer.
    """
    fitted, problem = fitting(loading, plan.micro_batch_size, "trainer.batch_size", processes)
    if problem is not None:
        raise UserError(problem)
    loading.needed = fitted.needed  # evaluations use the rest
    requests = (items for step in steps for items in plan.micro_batches(step))
    return load(batches_of(dataset), requests, loading, processes, stop)


def evaluation_batches(
    dataset: EvaluationImages, batch_size: int, loading: Loading, processes: Processes, stop: StopRequest
) -> Iterator[Batch]:
    """Batches of all images, in order; collective. Fewer workers load them where shared memory is small: an evaluation
    is short, and should not end the training that it is part of."""
    loading, problem = fitting(loading, batch_size, "its batch_size", processes)
    if problem is not None and processes.is_main:
        log.warning("an evaluation loads its images with fewer processes, which takes longer: %s", problem)
    rows = range(len(dataset))
    requests = (list(rows[start : start + batch_size]) for start in rows[::batch_size])
    return load(batches_of(dataset), requests, loading, processes, stop)
