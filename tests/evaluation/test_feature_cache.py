"""Cached features equal those of `extract`, are computed once, and are never confused with others."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from semaim.data.image_sets import ArrayImages
from semaim.data.sources import image_folders
from semaim.data.subsets import Subset
from semaim.data.transforms import evaluation, pretraining
from semaim.evaluation import feature_cache
from semaim.evaluation.feature_cache import cached_features
from semaim.evaluation.features import extract
from semaim.models.vit import vit_of
from support.caching import ASKED, FILES, Encoder, same, wanted
from support.evaluating import noise, surroundings
from support.folders import contents

# Stored content


@pytest.mark.parametrize("workers", [0, 2])
def test_files_hold_what_extract_gives(run, kept, tiny_model, workers):
    encoder, images = Encoder(vit_of(tiny_model(image_size=8)).eval()), noise()
    whole = extract(wanted(encoder, images), run)
    found = cached_features(kept, "weights", wanted(encoder, images, workers=workers), run)
    assert same(found, whole)
    (folder,) = kept.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", *FILES]
    arrays = {name: np.load(folder / name) for name in FILES}
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "cls.npy": (np.float32, (7, 32)),
        "mean.npy": (np.float32, (7, 32)),
        "labels.npy": (np.int64, (7,)),
        "index.npy": (np.int64, (7,)),
    }
    assert np.array_equal(arrays["mean.npy"], whole.by_kind["mean"])
    assert arrays["index.npy"].tolist() == ASKED
    assert arrays["labels.npy"].tolist() == [index % 3 for index in ASKED]


def test_the_second_time_nothing_is_computed(run, kept):
    encoder, images = Encoder(), noise()
    first = cached_features(kept, "weights", wanted(encoder, images), run)
    assert encoder.batches == 4
    before = contents(kept)
    assert same(cached_features(kept, "weights", wanted(encoder, images), run), first)
    assert encoder.batches == 4
    assert contents(kept) == before


def test_features_are_read_in_parts_and_protected_from_changes(run, kept):
    found = cached_features(kept, "weights", wanted(Encoder(), noise()), run)
    before = contents(kept)
    for rows in found.by_kind.values():
        assert isinstance(rows, np.memmap)
        rows[:] = -1  # a private copy
    found.tensor("cls").zero_()
    found.index_M.zero_()
    assert contents(kept) == before


def test_a_copy_in_parts_is_the_same(run, kept, monkeypatch):
    encoder, images = Encoder(), noise()
    whole = extract(wanted(encoder, images, range(30)), run)
    monkeypatch.setattr(feature_cache, "ROWS_PER_COPY", 4)
    assert same(cached_features(kept, "weights", wanted(encoder, images, range(30)), run), whole)


def test_without_a_folder_nothing_is_cached(run, tmp_path):
    encoder = Encoder()
    for _ in range(2):
        assert same(
            cached_features(None, "weights", wanted(encoder, noise()), run), extract(wanted(Encoder(), noise()), run)
        )
    assert encoder.batches == 8
    assert not contents(tmp_path)


# File names


def other_pixel():
    images = noise()
    images.images_NHWC[5, 1, 2, 0] ^= 1
    return images


def other_label():
    images = noise()
    return ArrayImages(images.images_NHWC, [*images.labels[:-1], 0], images.title)


DIFFERENT = {
    "encoder": lambda: ("other weights", wanted(Encoder(), noise())),
    "one pixel": lambda: ("weights", wanted(Encoder(), other_pixel())),
    "one label": lambda: ("weights", wanted(Encoder(), other_label())),
    "images in another order": lambda: ("weights", wanted(Encoder(), Subset(noise(), [1, 0, *range(2, 30)]))),
    "fewer indices": lambda: ("weights", wanted(Encoder(), noise(), ASKED[:-1])),
    "indices in another order": lambda: ("weights", wanted(Encoder(), noise(), sorted(ASKED))),
    "crop": lambda: ("weights", wanted(Encoder(), noise(), transform=evaluation(8, crop_ratio=0.875))),
    "mean": lambda: ("weights", wanted(Encoder(), noise(), transform=evaluation(8, 1.0, mean=(0.485, 0.456, 0.4)))),
    "std": lambda: ("weights", wanted(Encoder(), noise(), transform=evaluation(8, 1.0, std=(0.229, 0.224, 0.2)))),
    "size": lambda: ("weights", wanted(Encoder(), noise(), transform=evaluation((8, 4), 1.0))),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_changes_the_features_changes_the_name(run, kept, what):
    cached_features(kept, "weights", wanted(Encoder(), noise()), run)
    (first,) = kept.iterdir()
    weights, other = DIFFERENT[what]()
    assert same(cached_features(kept, weights, other, run), extract(other, run))
    assert other.encode.batches > 0
    assert first in kept.iterdir()
    assert len(list(kept.iterdir())) == 2


def test_what_does_not_change_the_features_does_not_change_the_name(run, kept, tmp_path):
    cached_features(kept, "weights", wanted(Encoder(), noise()), run)
    before = contents(kept)
    images = ArrayImages(noise().images_NHWC.copy(), noise().labels.tolist(), "the same under another title")
    other = wanted(Encoder(), images, np.array(ASKED), batch_size=5, title="another", workers=1, max_unreadable=9)
    other.data.train_transform = pretraining(8, flip=0.1)
    with surroundings(tmp_path / "elsewhere") as elsewhere:
        elsewhere.seed, elsewhere.config = 77, {"x": 1}
        cached_features(kept, "weights", other, elsewhere)
    assert other.encode.batches == 0
    assert contents(kept) == before


class Vague:
    """A transform without a stable representation."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, image):
        return self.scale * evaluation(8, 1.0)(image)


@pytest.mark.parametrize("make", [Vague, lambda scale: lambda image: scale * evaluation(8, 1.0)(image)])
def test_features_of_an_unidentified_transform_are_not_cached(run, kept, make):
    encoder = Encoder()
    one = cached_features(kept, "weights", wanted(encoder, noise(), transform=make(1.0)), run)
    two = cached_features(kept, "weights", wanted(encoder, noise(), transform=make(2.0)), run)
    assert np.array_equal(2 * one.by_kind["cls"], two.by_kind["cls"])
    assert encoder.batches == 8
    assert not kept.exists()


def files_of_one_grey(folder, grey):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (grey, 0, 0)).save(folder / name / f"{i}.png")


def test_held_out_files_of_the_same_names_are_other_images(run, kept, tmp_path):
    """train/a/0.png and val/a/0.png: a bank in place of the held-out images would make every accuracy 100 %."""
    for part, grey in (("train", 10), ("val", 200)):
        files_of_one_grey(tmp_path / "data" / part, grey)
    splits = image_folders(str(tmp_path / "data"))
    train, val = (
        cached_features(kept, "weights", wanted(Encoder(), part, range(4)), run) for part in (splits.train, splits.val)
    )
    assert val.by_kind["cls"][0, 0] > train.by_kind["cls"][0, 0]


def test_folders_of_files_of_the_same_names_are_other_images(run, kept, tmp_path):
    """Two values of data.root, such as a data set and a corrupted or smaller copy."""
    features = []
    for name, grey in (("clean", 10), ("corrupted", 200)):
        files_of_one_grey(tmp_path / name, grey)
        images = image_folders(str(tmp_path / name)).train
        features.append(cached_features(kept, "weights", wanted(Encoder(), images, range(4)), run).by_kind["cls"])
    assert features[1][0, 0] > features[0][0, 0]
