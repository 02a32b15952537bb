"""The generated shapes: identical in every process, with exact masks; only the shape determines the class."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from semaim.data import shapes as made
from semaim.data.image_sets import Splits
from semaim.data.shapes import SHAPES, shape_image, shapes
from semaim.errors import UserError
from semaim.preflight.check import check_sweep
from support.waiting import PATIENCE


@pytest.fixture(scope="module")
def default() -> Splits:
    """Values of conf/data/shapes.yaml."""
    return shapes(side=32, train=1600, val=400, seed=0)


def same(one, other):
    return (one.images_NHWC == other.images_NHWC).all() and (one.masks_NHW == other.masks_NHW).all()


def test_sizes_and_classes(default):
    assert list(default.classes) == list(SHAPES)
    assert len(SHAPES) == 10
    assert default.labelled is default.train
    for images, count in ((default.train, 1600), (default.val, 400)):
        assert images.images_NHWC.shape == (count, 32, 32, 3)
        assert (images.masks_NHW.shape, images.masks_NHW.dtype) == ((count, 32, 32), np.uint8)
        assert images.masked().tolist() == list(range(count))
        assert np.bincount(images.labels).tolist() == [count // 10] * 10
    assert default.val.name(7) == "shapes/val[7]"


def test_another_process_makes_the_same_images():
    program = (
        "import numpy; numpy.random.seed(9); from semaim.data.shapes import shapes; "
        "splits = shapes(32, 30, 20, 0); print(splits.train.fingerprint(), splits.val.fingerprint(), "
        "splits.train.masks_NHW.sum())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    here = shapes(32, 30, 20, 0)
    assert done.stdout.split() == [
        here.train.fingerprint(), here.val.fingerprint(), str(here.train.masks_NHW.sum())
    ]  # fmt: skip


def test_an_image_depends_on_seed_split_and_number_alone(default):
    few = shapes(32, 50, 25, 0)
    assert (few.train.images_NHWC == default.train.images_NHWC[:50]).all()
    assert (few.val.masks_NHW == default.val.masks_NHW[:25]).all()
    assert not same(few.train, shapes(32, 50, 25, 1).train)
    everything = np.concatenate([default.train.images_NHWC, default.val.images_NHWC])
    assert len({image.tobytes() for image in everything}) == 2000  # no image is in both splits


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_exactly_the_shape(shape, monkeypatch):
    """Without texture and noise there are two colours, one inside the mask and one outside."""
    monkeypatch.setattr(made, "TEXTURE", (0, 0))
    monkeypatch.setattr(made, "NOISE", 0)
    for seed in range(20):
        image_HWC, mask_HW = shape_image(shape, 32, seed)
        assert set(np.unique(mask_HW)) == {0, 1}
        inside, outside = (np.unique(image_HWC[mask_HW == number], axis=0) for number in (1, 0))
        assert (len(inside), len(outside)) == (1, 1)
        assert (inside != outside).any()


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ("disc", [(0, 0), (0.7, 0.7)], [(0.72, 0.72), (-1.01, 0)]),
        ("square", [(0.99, -0.99), (0, 0)], [(1.01, 0), (0, -1.01)]),
        ("triangle", [(0, -0.99), (0.8, 0.49), (-0.8, 0.49), (0, 0)], [(0, 0.51), (0.5, -0.5), (-0.5, -0.5)]),
        ("ring", [(0.51, 0), (0, -0.99), (0.6, 0.6)], [(0, 0), (0.49, 0), (0, 1.01)]),
        # Points at every 72 degrees from the top, (0, -1); notches half-way between, 0.45 from the centre.
        ("star", [(0, -0.99), (0.94, -0.305), (0, 0.44), (0, 0)], [(0, 0.46), (0.27, -0.38), (0.5, -0.5)]),
        ("cross", [(0.99, 0.29), (-0.29, -0.99), (0, 0)], [(0.31, 0.31), (0, 1.01)]),
        ("crescent", [(-0.99, 0), (-0.26, 0), (0, 0.99)], [(0, 0), (-0.24, 0), (0.9, 0)]),
        ("bar", [(0.99, 0.39), (-0.99, -0.39)], [(0, 0.41), (1.01, 0)]),
        ("angle", [(-0.99, 0.99), (0.99, -0.99), (-0.41, 0)], [(-0.39, -0.39), (0.5, 0.5), (0, -1.01)]),
        ("hourglass", [(0.9, 0.95), (-0.9, -0.95), (0, 0.1)], [(0.2, 0.1), (-0.5, 0.4), (0, 1.01)]),
    ],
)
def test_shapes_by_hand(shape, inside, outside):
    """Across and down from the centre."""
    contains = SHAPES[shape]
    assert [point for point in inside if not contains(*np.array(point))] == []
    assert [point for point in outside if contains(*np.array(point))] == []


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_the_requested_sizes(shape):
    shares = np.array([shape_image(shape, 96, seed)[1].mean() for seed in range(200)])
    assert 0.098 < shares.min() < 0.12
    assert 0.3 < shares.max() < 0.355


def test_shapes_have_random_positions(default):
    """The centre of a shape's bounding box varies over the image, and its average is the image centre."""
    for axis in (1, 2):
        there_NS = default.train.masks_NHW.any(axis)
        middle_N = (there_NS.argmax(1) + 32 - there_NS[:, ::-1].argmax(1)) / 2
        assert middle_N.min() < 7
        assert middle_N.max() > 25
        assert abs(middle_N.mean() - 16) < 4 * middle_N.std() / 1600**0.5


def test_neither_colour_nor_texture_predicts_the_class(default):
    """A classifier with means and deviations of colours, of object or background, is at chance level."""
    train, val = default.train, default.val
    for where in (1, 0):
        votes = KNeighborsClassifier(10).fit(colours(train, where), train.labels)
        # Chance is 10 %, plus or minus 1.5 for 400 images.
        assert abs(votes.score(colours(val, where), val.labels) - 0.1) < 5 * 0.015


def colours(images, number):
    """Mean and deviation of the colours of each image where its mask has the given value."""
    pixels_NHWC, where_NHW1 = images.images_NHWC / 255, images.masks_NHW[..., None] == number
    found = [statistic(pixels_NHWC, axis=(1, 2), where=where_NHW1) for statistic in (np.mean, np.std)]
    return np.concatenate(found, 1)


def test_the_colour_of_a_pixel_does_not_predict_the_object(default):
    rng = np.random.default_rng(0)
    pixels, which = [], []
    for image_HWC, mask_HW in zip(default.train.images_NHWC, default.train.masks_NHW, strict=True):
        for number in (0, 1):
            pixels.append(rng.choice(image_HWC[mask_HW == number]))
            which.append(number)
    votes = KNeighborsClassifier(10).fit(pixels[:2400], which[:2400])
    assert abs(votes.score(pixels[2400:], which[2400:]) - 0.5) < 5 * (0.25 / 800) ** 0.5


def test_invalid_sizes():
    with pytest.raises(UserError, match=r"data\.source\.side=8: shapes need at least 16 pixels"):
        shapes(8, 100, 100, 0)
    for counts in ((9, 10), (10, 9)):
        with pytest.raises(
            UserError, match=r"data\.source\.(train|val)=9: there must be an image of each of 10 shapes"
        ):
            shapes(16, *counts, 0)


def test_the_check_counts_them():
    checked = check_sweep([["data=shapes", "tracking=none"]])
    assert checked.problems == []
    assert checked.rows[0].cells(120.0)[4:8] == ["1000", "1600", "400", "10"]
