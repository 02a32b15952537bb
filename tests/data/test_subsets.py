"""Held-out splits and few images per class: sizes by hand, every class in both parts, fixed by the seed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from semaim.data.image_sets import ArrayImages, Splits
from semaim.data.sources import digits, image_folders
from semaim.data.subsets import Subset, few_shot_indices, hold_out
from semaim.errors import UserError
from support.evaluating import image_data

COUNTS = (1, 2, 5, 15, 25)  # images per class


def labelled(*counts, seed=0):
    """Images in random class order; the first pixel of each holds its index."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    pixels_NHWC = np.zeros((len(labels), 8, 8, 3), np.uint8)
    pixels_NHWC[:, 0, 0, 0] = np.arange(len(labels))
    return ArrayImages(pixels_NHWC, labels, "set")


def per_class(images, classes):
    return np.bincount([images.label(i) for i in range(len(images))], minlength=classes).tolist()


def first_pixels(images):
    return [images.read(i).getpixel((0, 0))[0] for i in range(len(images))]


# Subset


def test_a_subset_is_some_images_in_the_order_given():
    images = labelled(4, 4)
    part = Subset(images, [5, 0, 7])
    assert len(part) == 3
    assert first_pixels(part) == [5, 0, 7]
    assert [part.label(i) for i in range(3)] == [int(images.labels[i]) for i in (5, 0, 7)]
    assert [part.name(i) for i in range(3)] == ["set[5]", "set[0]", "set[7]"]
    assert all(type(part.label(i)) is int for i in range(3))
    of_part = Subset(part, np.array([2, 0]))
    assert first_pixels(of_part) == [7, 5]
    assert of_part.name(0) == "set[7]"
    assert first_pixels(pickle.loads(pickle.dumps(of_part))) == [7, 5]  # as for a worker


def test_the_fingerprint_of_a_subset_identifies_images_and_set():
    images = labelled(4, 4)
    found = {
        each.fingerprint()
        for each in (
            images,
            Subset(images, [5, 0, 7]),
            Subset(images, [0, 5, 7]),
            Subset(images, [5, 0]),
            Subset(labelled(4, 4, seed=1), [5, 0, 7]),
            Subset(Subset(images, [5, 0, 7]), [0, 1, 2]),
        )
    }
    assert len(found) == 6
    assert Subset(images, [5, 0, 7]).fingerprint() == Subset(labelled(4, 4), np.array([5, 0, 7])).fingerprint()


# Held-out images


@pytest.mark.parametrize(
    ("fraction", "held_out"),
    [
        # Fractions of 1, 2, 5, 15, 25 images, rounded (half to even), at least 1, at most all but 1.
        (0.1, [0, 1, 1, 2, 2]),  # 0.1, 0.2, 0.5, 1.5, 2.5
        (0.3, [0, 1, 2, 4, 8]),  # 0.3, 0.6, 1.5, 4.5, 7.5
        (0.99, [0, 1, 4, 14, 24]),  # 0.99, 1.98, 4.95, 14.85, 24.75
        (0.001, [0, 1, 1, 1, 1]),
    ],
)
def test_sizes_of_a_held_out_split(fraction, held_out):
    images = labelled(*COUNTS)
    kept, held = hold_out(images, fraction, 0)
    assert per_class(held, 5) == held_out
    assert per_class(kept, 5) == [count - size for count, size in zip(COUNTS, held_out, strict=True)]
    assert sorted([*kept.indices, *held.indices]) == list(range(48))  # each image once: no image in both parts
    for part in (kept, held):
        assert (np.diff(part.indices) > 0).all()
        assert first_pixels(part) == part.indices.tolist()


def test_a_held_out_split_is_fixed_by_the_seed_alone():
    images = labelled(*COUNTS)
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        splits.append(hold_out(images, 0.3, 7))
    assert all((splits[0][i].indices == splits[1][i].indices).all() for i in (0, 1))
    other = hold_out(images, 0.3, 8)[1]
    assert other.indices.tolist() != splits[0][1].indices.tolist()
    # Fixed values: a change would make evaluations use images that were trained on.
    alternating = ArrayImages(np.zeros((40, 1, 1, 3)), [0, 1] * 20, "x")
    assert hold_out(alternating, 0.1, 0)[1].indices.tolist() == [1, 8, 16, 19]


def test_every_image_can_be_held_out():
    images = labelled(4, 6)
    times = np.zeros(10)
    for seed in range(600):
        times[hold_out(images, 0.5, seed)[1].indices] += 1
    # 2 of 4 and 3 of 6: each image in half of the splits; 5 standard deviations are 5 sqrt(600 / 4) = 61.
    assert (abs(times - 300) < 61).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_an_invalid_fraction(fraction):
    with pytest.raises(UserError, match=rf"held-out share of {fraction} is invalid: .* between 0 and 1"):
        hold_out(labelled(3, 3), fraction, 0)


# Few images per class


def test_few_shot_indices():
    images = labelled(3, 9, 4)
    for shots in (1, 2, 3):
        chosen = few_shot_indices(images, shots, 5)
        assert chosen == sorted(set(chosen))
        assert np.bincount(images.labels[chosen]).tolist() == [shots] * 3
        assert all(type(index) is int for index in chosen)
    assert few_shot_indices(images, 2, 5) == few_shot_indices(images, 2, 5)
    assert len({tuple(few_shot_indices(images, 2, seed)) for seed in range(20)}) > 10
    with pytest.raises(UserError, match=r"4 images per class requested, but class 0 has 3: lower task\.shots"):
        few_shot_indices(images, 4, 5)


def test_few_of_a_subset_are_places_in_the_subset():
    part = Subset(labelled(10, 10), range(10, 20))
    chosen = few_shot_indices(part, 2, 0)
    assert set(chosen) <= set(range(10))
    assert sorted(part.label(i) for i in chosen) == [0, 0, 1, 1]


# Data of a configuration


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")


def names(images):
    return [images.name(i) for i in range(len(images))]


def test_images_are_held_out_of_folders_without_val(tmp_path):
    for name in ("cat", "dog"):
        put(tmp_path / name, *range(10))
    found = image_data(image_folders(str(tmp_path)), val_fraction=0.3, val_seed=4)
    train, held_out = found.labelled_and_held_out()
    assert train is found.splits.train  # pretraining does not use the held-out images either
    assert found.splits.classes == ["cat", "dog"]
    assert (per_class(train, 2), per_class(held_out, 2)) == ([7, 7], [3, 3])
    assert sorted(names(train) + names(held_out)) == sorted(str(path) for path in tmp_path.glob("*/*.png"))
    assert [held_out.label(i) for i in range(6)] == [int("dog" in name) for name in names(held_out)]
    again = image_data(image_folders(str(tmp_path)), val_fraction=0.3, val_seed=4)
    assert names(again.splits.val) == names(held_out)
    other = image_data(image_folders(str(tmp_path)), val_fraction=0.3, val_seed=5)
    assert names(other.splits.val) != names(held_out)


def test_what_is_held_out_already_is_not_held_out_again(tmp_path):
    for part in ("train", "val"):
        put(tmp_path / part / "cat", "a", "b")
    splits = image_folders(str(tmp_path))
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.5, but these data have held-out images .* null"):
        image_data(splits, val_fraction=0.5)
    assert image_data(splits).labelled_and_held_out() == (splits.train, splits.val)
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.5, but these data have held-out images .* null"):
        image_data(digits(8), val_fraction=0.5)


def test_no_fraction_of_a_class_without_classes(tmp_path):
    put(tmp_path, "a", "b")
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.5 holds out a share of every class, .* no labels"):
        image_data(image_folders(str(tmp_path)), val_fraction=0.5)
    with pytest.raises(UserError, match=r"held-out share of 2 is invalid"):
        image_data(Splits(labelled(3), labelled(3), None, ["x"]), val_fraction=2)


def test_an_evaluation_needs_labels_and_held_out_images(tmp_path):
    put(tmp_path / "flat", "a", "b")
    with pytest.raises(UserError, match=r"these data have no labels, which an evaluation needs: .* data=\.\.\."):
        image_data(image_folders(str(tmp_path / "flat"))).labelled_and_held_out()
    put(tmp_path / "classes" / "cat", "a", "b")
    with pytest.raises(
        UserError, match=r"have no held-out images, .* beside train/ as val/, .* data\.val_fraction=0\.1"
    ):
        image_data(image_folders(str(tmp_path / "classes"))).labelled_and_held_out()


def test_held_out_images_that_are_the_training_images_are_refused(tmp_path):
    root = tmp_path / "root"
    put(root / "train" / "cat", "a", "b")
    (root / "val").symlink_to("train")
    with pytest.raises(UserError, match=r"/val is .*/train itself: accuracy on training images is not meaningful"):
        image_folders(str(root))
    put(tmp_path / "elsewhere" / "cat", "c")
    (root / "val").unlink()
    (root / "val").symlink_to("../elsewhere")  # a link alone is no mistake
    assert names(image_folders(str(root)).val) == [str(root / "val" / "cat" / "c.png")]
