"""Batches of images: samples are collated in a worker, and normalised on the device.

Shapes: B images, C colours, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from semaim.data.pixels import Normalise


@dataclass
class Batch:
    """Images of one micro-batch.

    Attributes:
        images_BCHW: normalised images; before `to`, pixels (uint8) if `on_device` is given.
        labels_B: long, -1 where unlabelled.
        index_B: long, indices in the data set.
        first_row: index of the first image in the step's whole batch; the others follow consecutively.
        unreadable: name and reason of each skipped image.
        seeds: of the augmentation of each image, for what is random on the device.
        on_device: what makes normalised images of pixels; None if they are normalised.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    index_B: Tensor
    first_row: int
    unreadable: list[tuple[str, str]]
    seeds: list[int] = field(default_factory=list)
    on_device: Normalise | None = None

    def share_memory_(self) -> Batch:
        """Move the tensors to shared memory; raises RuntimeError if it is full."""
        for tensor in (self.images_BCHW, self.labels_B, self.index_B):
            tensor.share_memory_()
        return self

    def pin_memory(self) -> Batch:
        self.images_BCHW = self.images_BCHW.pin_memory()
        self.labels_B = self.labels_B.pin_memory()
        return self

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, with normalised images; the indices stay, since only the host reads them."""
        images_BCHW, labels_B = (each.to(device, non_blocking=True) for each in (self.images_BCHW, self.labels_B))
        if self.on_device is not None:
            images_BCHW = self.on_device(images_BCHW, self.seeds)
        return replace(self, images_BCHW=images_BCHW, labels_B=labels_B, on_device=None)


@dataclass(frozen=True)
class Sample:
    """One image of a batch, and what belongs to it; see `Batch`. An image that cannot be read is None."""

    image: Tensor | None
    label: int
    index: int
    row: int
    seed: int
    unreadable: list[tuple[str, str]]


def collate(samples: Sequence[Sample], normalise: Normalise | None) -> Batch:
    """Collate samples of either data set to a batch; `normalise` is what remains to be done on the device."""
    readable = [sample for sample in samples if sample.image is not None]
    return Batch(
        images_BCHW=_stacked([sample.image for sample in readable if sample.image is not None]),
        labels_B=torch.tensor([sample.label for sample in readable], dtype=torch.long),
        index_B=torch.tensor([sample.index for sample in readable], dtype=torch.long),
        first_row=samples[0].row,
        unreadable=[entry for sample in samples for entry in sample.unreadable],
        seeds=[sample.seed for sample in readable],
        on_device=normalise if readable else None,
    )


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """A batch of images in the layout of their memory: colours side by side, as decoded, or one after another."""
    if not images:
        return torch.empty(0)
    if images[0].is_contiguous():
        return torch.stack(list(images))
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
