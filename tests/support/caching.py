"""Features of small noise images, cached in files."""

from __future__ import annotations

import numpy as np
import torch

from semaim.data.image_sets import Splits
from semaim.evaluation.features import Extraction
from semaim.models.vit import encode
from support.evaluating import image_data

ASKED = [7, 0, 29, 3, 12, 4, 21]
FILES = ["cls.npy", "index.npy", "labels.npy", "mean.npy"]  # and SHA256SUMS


class Encoder:
    """Fake encoder with two kinds of features; it counts its batches."""

    def __init__(self, vit=None):
        self.vit = vit
        self.batches = 0

    def __call__(self, images_BCHW):
        self.batches += 1
        if self.vit is not None:
            return encode(self.vit, images_BCHW)
        return {"cls": images_BCHW.mean((2, 3)), "mean": images_BCHW[:, 0, 0, :5]}


def wanted(encoder, images, indices=ASKED, batch_size=2, title="test", **how):
    return Extraction(
        encoder, image_data(Splits(images, images, images, []), **how), images, indices, batch_size, title
    )


def same(one, other):
    assert one.by_kind.keys() == other.by_kind.keys()
    for kind, rows in other.by_kind.items():
        assert one.by_kind[kind].dtype == rows.dtype
        assert np.array_equal(one.by_kind[kind], rows)
    assert torch.equal(one.labels_M, other.labels_M)
    assert torch.equal(one.index_M, other.index_M)
    return True
