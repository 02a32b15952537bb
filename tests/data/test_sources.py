"""Sources read files on disk in their true formats and report errors in them."""

from __future__ import annotations

import os
import pickle
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, STL10

from semaim.data.image_sets import UNLABELLED
from semaim.data.sources import cifar10, digits, image_folders, stl10
from semaim.errors import UserError


def contents(images):
    """All images of a set as (bytes, label)."""
    return [(images.read(i).tobytes(), images.label(i)) for i in range(len(images))]


# Handwritten digits


def test_digits_have_the_documented_sizes():
    splits = digits()
    assert (len(splits.train), len(splits.val), len(splits.classes)) == (1437, 360, 10)
    assert splits.labelled is splits.train
    for images in (splits.train, splits.val):
        assert images.images_NHWC.shape == (len(images), 32, 32, 3)
        assert images.images_NHWC.dtype == np.uint8
        assert (images.images_NHWC[..., 0] == images.images_NHWC[..., 2]).all()  # grey
        assert (images.read(3).size, images.read(3).mode) == ((32, 32), "RGB")
    assert splits.val.name(7) == "digits/val[7]"


def test_digits_are_those_of_scikit_learn_in_its_stratified_split():
    data = load_digits()
    parts = train_test_split(np.arange(1797), test_size=0.2, stratify=data.target, random_state=0, shuffle=True)
    scaled = (data.images * 255 / 16).astype(np.uint8)[..., None].repeat(3, -1)
    splits = digits(side=8)  # no enlargement
    for images, part in zip((splits.train, splits.val), parts, strict=True):
        assert np.array_equal(images.images_NHWC, scaled[part])
        assert np.array_equal(images.labels, data.target[part])
    large = digits()  # the same split, enlarged
    assert (large.val.labels == splits.val.labels).all()
    small_NL = large.val.images_NHWC[..., 0].reshape(360, 8, 4, 8, 4).mean((2, 4)).reshape(360, 64)
    distances_NN = ((small_NL[:, None] - splits.val.images_NHWC[..., 0].reshape(1, 360, 64)) ** 2).sum(-1)
    assert (distances_NN.argmin(1) == np.arange(360)).all()


def test_masks_of_digits_are_their_strokes():
    held_out = digits(side=8).val
    assert held_out.masked().tolist() == list(range(360))
    for i in (0, 100, 359):
        assert np.array_equal(held_out.mask(i), np.asarray(held_out.read(i))[..., 0] >= 128)
        assert 0 < held_out.mask(i).mean() < 0.6


def test_digits_options_and_repeatability():
    splits = digits(side=16, val_fraction=0.5)
    assert (len(splits.train), len(splits.val)) == (898, 899)
    assert splits.train.images_NHWC.shape[1:] == (16, 16, 3)
    per_class = np.bincount(splits.val.labels)
    assert (per_class.min(), per_class.max()) == (79, 99)  # nearly stratified
    assert contents(digits(8).val) == contents(digits(8).val)
    with pytest.raises(UserError, match=r"data.source.val_fraction=0.9999 leaves none of the 1797 images"):
        digits(val_fraction=0.9999)


# Folders


def put(folder, **colours):
    """Write single-colour images: put(folder, name=grey level)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, grey in colours.items():
        Image.new("L", (6, 4), grey).save(folder / f"{name}.png")


def test_labelled_train_and_val(tmp_path):
    put(tmp_path / "train" / "dog", d2=12, d1=11)
    put(tmp_path / "train" / "cat" / "deeper", c1=1)
    put(tmp_path / "val" / "cat", v1=101)
    put(tmp_path / "val" / "dog", v2=112)
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "dog" / "d3.JPEG").write_bytes((tmp_path / "train" / "dog" / "d1.png").read_bytes())
    (tmp_path / "train" / "dog" / "folder.png").mkdir()
    splits = image_folders(str(tmp_path))
    assert splits.classes == ["cat", "dog"]
    found = [(splits.train.read(i).getpixel((0, 0)), splits.train.label(i)) for i in range(len(splits.train))]
    assert found == [((1, 1, 1), 0), ((11, 11, 11), 1), ((12, 12, 12), 1), ((11, 11, 11), 1)]  # d1 d2 d3.JPEG
    assert splits.train.read(0).size == (6, 4)
    assert splits.train.name(0) == str(tmp_path / "train/cat/deeper/c1.png")
    assert [splits.val.read(i).getpixel((5, 3))[0] for i in range(2)] == [101, 112]
    assert [splits.val.label(i) for i in range(2)] == [0, 1]
    assert splits.labelled is splits.train


def test_class_folders_directly_in_the_root(tmp_path):
    put(tmp_path / "b", x=2)
    put(tmp_path / "a", y=1)
    splits = image_folders(str(tmp_path))
    assert (splits.classes, splits.val) == (["a", "b"], None)
    assert [(splits.train.read(i).getpixel((0, 0))[0], splits.train.label(i)) for i in range(2)] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("where", [".", "train"])
def test_flat_folders_have_no_labels(tmp_path, where):
    put(tmp_path / where, b=2, a=1)
    splits = image_folders(str(tmp_path))
    assert (splits.labelled, splits.val, list(splits.classes)) == (None, None, [])
    assert [splits.train.read(i).getpixel((0, 0))[0] for i in range(len(splits.train))] == [1, 2]
    assert {splits.train.label(0), splits.train.label(1)} == {UNLABELLED} == {-1}


@pytest.mark.parametrize("layout", ["flat", "classes"])
def test_linked_folders_are_entered_and_hidden_ones_are_not_classes(tmp_path, layout):
    put(tmp_path / "elsewhere", a="red")
    put(tmp_path / "root" / "cat", b="blue")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / ".cache").mkdir()
    splits = image_folders(str(tmp_path / "root"), layout)
    assert [str(file) for file in splits.train.files] == ["cat/b.png", "dog/a.png"]
    assert splits.classes == (["cat", "dog"] if layout == "classes" else [])


def test_held_out_images_alone_are_refused_for_training(tmp_path):
    put(tmp_path / "val" / "cat", b="blue")
    with pytest.raises(UserError, match=r"val/ but no train/"):
        image_folders(str(tmp_path))


def test_layout_can_be_set(tmp_path):
    put(tmp_path, loose=1)
    put(tmp_path / "k" / "deep", nested=2)
    with pytest.raises(UserError, match=r"both images \(loose\.png, \.\.\.\) and folders \(k/\): .*layout=flat"):
        image_folders(str(tmp_path))
    assert [os.path.basename(name) for name in image_folders(str(tmp_path), "flat").train.files] == [
        "nested.png",
        "loose.png",
    ]
    classes = image_folders(str(tmp_path), "classes")
    assert (len(classes.train), classes.classes, classes.train.label(0)) == (1, ["k"], 0)


def test_invalid_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}/none is not a folder"):
        image_folders(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    for layout in ("auto", "flat", "classes"):
        with pytest.raises(UserError, match=rf"{tmp_path}/empty holds no image .*data\.root"):
            image_folders(str(tmp_path / "empty"), layout)
    put(tmp_path / "some" / "full", x=1)
    (tmp_path / "some" / "hollow").mkdir()
    with pytest.raises(
        UserError, match=rf"{tmp_path}/some holds 1 class folder without images: hollow/; remove or fill it"
    ):
        image_folders(str(tmp_path / "some"))
    put(tmp_path / "split" / "train" / "cat", x=1)
    put(tmp_path / "split" / "val" / "dog", x=1)
    with pytest.raises(UserError, match=rf"{tmp_path}/split/train and .*/split/val must .* 2 differ: cat/, dog/"):
        image_folders(str(tmp_path / "split"))


# Data sets downloaded by torchvision


@pytest.fixture
def _no_checksums(monkeypatch):
    """Disable torchvision's MD5 checks, which tiny files in the same format cannot pass."""
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, _: os.path.isfile(path))


@pytest.mark.usefixtures("_no_checksums")
def test_cifar10_in_its_true_format(tmp_path):
    folder, rng = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    rows, labels = rng.integers(0, 256, (12, 3072), dtype=np.uint8), rng.integers(0, 10, 12).tolist()
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        entry = {"data": rows[2 * i : 2 * i + 2], "labels": labels[2 * i : 2 * i + 2]}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"] * 10}, protocol=2))
    splits = cifar10(str(tmp_path), download=False)
    assert (len(splits.train), len(splits.val), len(splits.classes)) == (10, 2, 10)
    assert splits.labelled is splits.train
    for row, (images, index) in enumerate([*((splits.train, i) for i in range(10)), (splits.val, 0), (splits.val, 1)]):
        # A row of the file: 1024 red values row by row, then green, then blue.
        assert (np.asarray(images.read(index)) == rows[row].reshape(3, 32, 32).transpose(1, 2, 0)).all()
        assert images.label(index) == labels[row]
    assert splits.val.name(1) == "cifar10/test[1]"


@pytest.mark.usefixtures("_no_checksums")
def test_stl10_in_its_true_format(tmp_path):
    folder, rng = tmp_path / "stl10_binary", np.random.default_rng(0)
    folder.mkdir()
    images = {part: rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
              for part, n in [("train", 3), ("test", 2), ("unlabeled", 4)]}  # fmt: skip
    for part, array in images.items():
        array.transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")  # colour, then column, then row
    np.array([1, 10, 5], np.uint8).tofile(folder / "train_y.bin")  # classes start at 1
    np.array([7, 2], np.uint8).tofile(folder / "test_y.bin")
    splits = stl10(str(tmp_path), download=False)
    read = {part: np.stack([np.asarray(s.read(i)) for i in range(len(s))]) for part, s in
            [("train", splits.labelled), ("test", splits.val), ("all", splits.train)]}  # fmt: skip
    assert (read["train"] == images["train"]).all()
    assert (read["test"] == images["test"]).all()
    assert (read["all"] == np.concatenate([images["train"], images["unlabeled"]])).all()
    assert splits.labelled.labels.tolist() == [0, 9, 4]
    assert splits.val.labels.tolist() == [6, 1]
    assert splits.train.labels.tolist() == [0, 9, 4, -1, -1, -1, -1]
    assert len(splits.classes) == 10


@pytest.mark.parametrize(("source", "dataset"), [(cifar10, CIFAR10), (stl10, STL10)])
def test_missing_data_that_cannot_be_downloaded(tmp_path, monkeypatch, source, dataset):
    with pytest.raises(UserError, match=rf"data\.root={tmp_path} nor could it be downloaded"):
        source(str(tmp_path), download=False)

    def no_network(_):
        raise URLError("no route to host")

    monkeypatch.setattr(dataset, "download", no_network)
    with pytest.raises(UserError, match=rf"data\.root={tmp_path} .*no route to host.*data\.source\.download=true"):
        source(str(tmp_path), download=True)
