"""Transforms of pretraining and evaluation: resizing, crops and flips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from semaim.core.seeding import seeded
from semaim.data import transforms
from semaim.data.transforms import linear_probe
from semaim.errors import UserError
from support.pixel_arrays import PLAIN, near, picture, pixels


@pytest.mark.parametrize(("size", "shape"), [(32, (3, 32, 32)), ((32, 48), (3, 32, 48)), ([48, 32], (3, 48, 32))])
def test_pretraining_output(size, shape):
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    image = Image.new("RGB", (70, 50), (255, 51, 0))
    tensor = transforms.pretraining(size, mean=mean, std=std)(image)
    assert (tensor.shape, tensor.dtype) == (shape, torch.float32)
    assert tensor[:, 5, 7].tolist() == pytest.approx([(1 - 0.5) / 0.5, 0.2 - 0.25, -0.125 / 2], abs=1e-6)
    assert (tensor == tensor[:, :1, :1]).all()  # a crop of a single-colour image has one colour


def test_pretraining_crops_and_flips_as_configured():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(256, 0)).convert("RGB")
    still = transforms.pretraining(64, scale=(1.0, 1.0), flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    flipped = transforms.pretraining(64, scale=(1.0, 1.0), flip=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    assert still(ramp)[0, 0, 10] < 0.3 < 0.7 < flipped(ramp)[0, 0, 10]
    small = transforms.pretraining(64, scale=(0.2, 0.2), flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    widths = [(tensor[0, 0, -1] - tensor[0, 0, 0]).item() for tensor in (small(ramp) for _ in range(50))]
    # A fifth of the area with aspect ratios 3/4 to 4/3 is 0.39 to 0.52 of the width.
    assert 0.36 < min(widths) < 0.42 < 0.48 < max(widths) < 0.55


@pytest.mark.parametrize(
    ("source", "resized", "box"),
    [
        ((256, 256), (256, 256), (16, 16, 240, 240)),
        ((512, 384), (341, 256), (58, 16, 282, 240)),  # width first; (341 - 224) / 2 = 58.5, rounded to even
        ((100, 300), (256, 768), (16, 272, 240, 496)),
    ],
)
def test_evaluation_is_resize_and_centre_crop(source, resized, box):
    width, height = source
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    by_hand = np.asarray(Image.fromarray(array).resize(resized, Image.Resampling.BICUBIC).crop(box))
    found = pixels(transforms.evaluation(224, crop_ratio=0.875, **PLAIN)(Image.fromarray(array)))
    assert near(found, by_hand)
    tensor = transforms.evaluation(224, crop_ratio=0.875)(Image.fromarray(array))
    expected = (found / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert tensor.shape == (3, 224, 224)
    assert (tensor - torch.from_numpy(expected).permute(2, 0, 1)).abs().max() <= 1e-5


def test_the_whole_image_is_seen_at_crop_ratio_1():
    image = picture(64, 32)  # of the target's size
    for transform in (transforms.evaluation((32, 64), 1.0, **PLAIN), linear_probe((32, 64), 0.0, **PLAIN)):
        assert (pixels(transform(image)) == np.asarray(image)).all()
    twice = picture(128, 64).resize((128, 64))
    halved = np.asarray(twice.resize((64, 32), Image.Resampling.BICUBIC))
    assert near(pixels(transforms.evaluation((32, 64), 1.0, **PLAIN)(twice)), halved)


@pytest.mark.parametrize("ratio", [1.0, 0.95, 0.9, 0.875, 0.5])
@pytest.mark.parametrize("size", [(28, 28), (28, 56), (56, 28), (56, 84), (32, 32), (33, 46)])
def test_evaluation_crops_like_timm(size, ratio):
    theirs = create_transform((3, *size), crop_pct=ratio, crop_mode="center", interpolation="bicubic", **PLAIN)
    ours = transforms.evaluation(size, ratio, **PLAIN)
    for source in ((70, 50), (50, 70), (64, 32), (33, 65), (200, 90), (5, 7), (1, 1)):
        image = picture(*source)
        assert near(pixels(ours(image)), pixels(theirs(image)))


@pytest.mark.parametrize("source", [(3000, 2), (2, 3001), (4100, 40)])
def test_only_the_crop_of_a_long_image_is_computed(source, monkeypatch):
    """With the values of the whole resized image: at most one level apart, where float32 rounds otherwise."""
    image, makers = picture(*source), (transforms.evaluation, linear_probe)
    mask_HW = np.random.default_rng(1).integers(0, 256, source[::-1], dtype=np.uint8)
    sizes = []

    def record(resize):
        return lambda *args, **more: [sizes.append(args[1]), resize(*args, **more)][1]

    for place in (Image.Image, transforms.F):  # of parts, and of whole images
        monkeypatch.setattr(place, "resize", record(place.resize))

    def all_of_them():
        sizes.clear()
        with seeded(0):
            images = [make(size, **PLAIN)(image) for make in makers for size in (16, (16, 24))]
        return images, transforms.on_mask(transforms.evaluation(16, **PLAIN), mask_HW), max(map(math.prod, sizes))

    parts, mask, largest = all_of_them()
    assert largest <= 64 * 16 * 24
    monkeypatch.setattr(transforms.CoveringCrop, "LARGE", math.inf)
    whole, whole_mask, largest = all_of_them()
    assert largest > 100 * 16 * 16
    assert torch.equal(mask, whole_mask)
    for part, expected in zip(parts, whole, strict=True):
        difference = (pixels(part).astype(int) - pixels(expected)).__abs__()
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("ratio", [0, -1, 1.5, float("nan")])
def test_a_ratio_without_a_crop(ratio):
    with pytest.raises(UserError, match=r"data\.eval_transform\.crop_ratio=\S+ must be above 0 and at most 1"):
        transforms.evaluation(16, ratio)
