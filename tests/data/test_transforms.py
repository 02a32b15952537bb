"""Transforms of the linear probe and fine-tuning; each draw is compared with Pillow."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from semaim.core.seeding import seeded
from semaim.data.transforms import IMAGENET_MEAN, IMAGENET_STD, finetuning, linear_probe
from support.pixel_arrays import PLAIN, near, picture, pixels

MAKERS = {"linear_probe": linear_probe, "finetuning": finetuning}
STILL = {"flip": 0.0, "rand_augment": None, "erase": 0.0}  # fine-tuning with the crop only


def draws(transform, image, count, seed=0):
    with seeded(seed):
        return [transform(image) for _ in range(count)]


# Both transforms


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(("size", "shape"), [(16, (3, 16, 16)), ((16, 24), (3, 16, 24)), ([24, 16], (3, 24, 16))])
def test_output(make, size, shape):
    for source in ((70, 50), (50, 70), (16, 24), (5, 7), (1, 1)):
        tensor = make(size)(picture(*source))
        assert (tensor.shape, tensor.dtype) == (shape, torch.float32)
        assert tensor.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_crop_has_at_least_one_pixel(size):
    """A quarter of timm's boxes of an image of one pixel have a side of zero."""
    image = Image.new("RGB", size, (255, 51, 0))
    found = torch.stack(draws(finetuning((4, 6), **STILL, **PLAIN), image, 100))
    assert found.shape == (100, 3, 4, 6)
    assert torch.allclose(found, torch.tensor([1, 0.2, 0]).view(1, 3, 1, 1).expand_as(found), atol=1e-6)


@pytest.mark.parametrize(("make", "still"), [(linear_probe, {}), (finetuning, STILL)])
def test_normalisation(make, still):
    image = Image.new("RGB", (70, 50), (255, 51, 0))
    tensor = make(16, **still, mean=[0.5, 0.25, 0.125], std=[0.5, 1.0, 2.0])(image)
    assert tensor[:, 5, 7].tolist() == pytest.approx([(1 - 0.5) / 0.5, 0.2 - 0.25, -0.125 / 2], abs=1e-6)
    assert (tensor == tensor[:, :1, :1]).all()
    by_default = make(16, **still)(image)[:, 0, 0].tolist()
    expected = [(value - m) / s for value, m, s in zip((1, 0.2, 0), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert by_default == pytest.approx(expected, abs=1e-6)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_seed_decides_everything(make):
    """Torch, python and numpy: RandAugment draws from all three."""
    transform, image = make(16), picture(60, 30)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one, again, other = (draws(transform, image, 30, seed) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert sum(torch.equal(a, b) for a, b in zip(one, other, strict=True)) < 10
    assert len({tensor.numpy().tobytes() for tensor in one}) > 15
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(("make", "still"), [(linear_probe, {}), (finetuning, STILL | {"scale": (1.0, 1.0)})])
def test_flip(make, still):
    image = picture(16, 16)  # already of the target size: no crop
    array = np.asarray(image)
    never, always, maybe = (draws(make(16, **still | {"flip": p}, **PLAIN), image, 200) for p in (0.0, 1.0, 0.3))
    assert all((pixels(tensor) == array).all() for tensor in never)
    assert all((pixels(tensor) == array[:, ::-1]).all() for tensor in always)
    flipped = [(pixels(tensor) == array[:, ::-1]).all() for tensor in maybe]
    assert all(f or (pixels(tensor) == array).all() for f, tensor in zip(flipped, maybe, strict=True))
    assert abs(sum(flipped) - 60) < 5 * (200 * 0.3 * 0.7) ** 0.5


# Linear probe


@pytest.mark.parametrize(
    ("source", "size", "resized"),
    [
        ((40, 24), 16, (26, 16)),  # width first; 40 * 16 / 24 = 26.7, truncated
        ((30, 50), 16, (16, 26)),
        ((10, 12), 16, (16, 19)),  # enlarged
        ((20, 20), (16, 24), (24, 24)),  # the smallest size that covers the crop
        ((20, 30), (16, 20), (20, 30)),
        ((44, 22), (16, 24), (32, 16)),
    ],
)
def test_linear_probe_crops_the_resized_image_anywhere(source, size, resized):
    image = picture(*source)
    whole = np.asarray(image.resize(resized, Image.Resampling.BICUBIC)).astype(int)
    height, width = (size, size) if isinstance(size, int) else size
    windows = {
        (top, left): whole[top : top + height, left : left + width]
        for top in range(resized[1] - height + 1)
        for left in range(resized[0] - width + 1)
    }
    drawn = {
        pixels(tensor).tobytes(): pixels(tensor) for tensor in draws(linear_probe(size, 0.0, **PLAIN), image, 1200)
    }
    found = [[where for where, window in windows.items() if near(each, window)] for each in drawn.values()]
    assert [len(each) for each in found] == [1] * len(found)  # each draw is one window of the resized image
    assert {where for each in found for where in each} == set(windows)  # and every one occurs, also at the edges


# Fine-tuning


def test_finetuning_without_extras_is_a_random_resized_crop():
    image = picture(40, 30)
    transform = finetuning((16, 24), scale=(0.3, 0.6), **STILL, **PLAIN)
    areas = []
    for seed in range(100):
        (found,) = draws(transform, image, 1, seed)
        with seeded(seed):
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (0.3, 0.6), (3 / 4, 4 / 3))
        box = (left, top, left + width, top + height)
        assert near(pixels(found), np.asarray(image.crop(box).resize((24, 16), Image.Resampling.BICUBIC)))
        areas.append(height * width / 1200)
    assert 0.28 < min(areas) < 0.33
    assert 0.55 < max(areas) < 0.63  # whole pixels deviate slightly from the requested area


def test_finetuning_crops_have_the_requested_minimum_size():
    """On a ramp of 256 pixels: a crop of 8 % of the area with aspect ratios 3/4 to 4/3 is 0.24 to 0.33 wide."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(256, 0)).convert("RGB")

    def widths(transform):
        return [(tensor[0, 8, -1] - tensor[0, 8, 0]).item() for tensor in draws(transform, ramp, 300)]

    small = widths(finetuning(64, scale=(0.08, 0.08), **STILL, **PLAIN))
    assert 0.22 < min(small) < 0.26 < 0.31 < max(small) < 0.34
    default = widths(finetuning(64, **STILL, **PLAIN))
    assert min(default) < 0.34  # from 8 % of the area: a fifth of it is at least 0.39 wide
    assert max(default) > 0.9  # up to the whole area


@pytest.mark.parametrize(("erase", "expected"), [(0.0, 0), (1.0, 400), (0.25, 100)])
def test_erasing_puts_noise_into_a_rectangle(erase, expected):
    image = Image.new("RGB", (32, 32), (120, 130, 140))
    tensors = draws(finetuning(32, flip=0.0, rand_augment=None, erase=erase), image, 400)
    untouched = finetuning(32, **STILL)(image)
    erased = []
    for tensor in tensors:
        changed_HW = (tensor != untouched).all(0)
        assert ((tensor != untouched).any(0) == changed_HW).all()
        if not changed_HW.any():
            continue
        rows, columns = changed_HW.any(1).nonzero(), changed_HW.any(0).nonzero()
        box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert changed_HW[box].all()
        assert 0.015 < changed_HW.sum() / 32**2 < 0.36  # 2 % to a third of the area, in whole pixels
        erased.append(tensor[:, *box].flatten())
    assert abs(len(erased) - expected) <= 5 * (400 * erase * (1 - erase)) ** 0.5
    if erased:
        noise = torch.cat(erased)  # independent for each pixel, in normalised colours
        assert abs(noise.mean()) < 0.02
        assert abs(noise.std() - 1) < 0.02


def test_rand_augment_changes_colours_and_shapes():
    """On a half grey, half white image: changes that a full crop cannot cause."""
    array = np.full((16, 16, 3), 100, np.uint8)
    array[:, 8:] = 250
    image = Image.fromarray(array)
    how = {"scale": (1.0, 1.0), "flip": 0.0, "erase": 0.0, **PLAIN}
    plain = draws(finetuning(16, **how, rand_augment=None), image, 100)
    assert all((pixels(tensor) == array).all() for tensor in plain)
    augmented = [pixels(tensor) for tensor in draws(finetuning(16, **how), image, 400)]
    changed = [found for found in augmented if (found != array).any()]
    assert 150 < len(changed) < 400  # two of these operations, each applied half of the time
    assert any((found == 255 - array).all() for found in changed)  # inverted
    straight = [(found == found[:1]).all() for found in changed]
    assert 0.1 < 1 - np.mean(straight) < 0.9  # some are rotated or sheared, others change only in colour


def test_rand_augment_fills_with_the_mean_colour():
    """Corners left empty by a rotation are filled with the mean colour, not black."""
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    mean = (0.2, 0.4, 0.6)
    transform = finetuning(16, (1.0, 1.0), 0.0, "rand-m9-n1-p1", 0.0, mean, (1, 1, 1))
    tensors = draws(transform, image, 200)
    corners = [tensor[:, 0, 0] for tensor in tensors]
    assert sum(bool(corner.abs().max() < 0.003) for corner in corners) > 10  # the mean, to 1/255, is normalised to 0


def test_a_thousand_draws_of_the_default_recipe():
    image = picture(12, 10)
    tensors = draws(finetuning(16), image, 1000)
    assert all(tensor.shape == (3, 16, 16) and tensor.isfinite().all() for tensor in tensors)
    assert len({tensor.numpy().tobytes() for tensor in tensors}) > 950
