"""Fixtures of several test files: a pretrained encoder and small images."""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.data.image_sets import Splits
from semaim.models.vit import encode, vit_of
from support.evaluating import noise
from support.in_process import run
from support.probing import ENCODER


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("pretrained"), *ENCODER)


@pytest.fixture
def splits():
    """The held-out images are the training images, so each one is its own nearest neighbour."""
    images = noise()
    return Splits(images, images, images, ["a", "b", "c"])


@pytest.fixture
def encoder(tiny_model):
    vit = vit_of(tiny_model(image_size=8)).eval()
    return lambda images_BCHW: encode(vit, images_BCHW)
