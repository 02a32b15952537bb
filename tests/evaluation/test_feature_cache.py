"""Features in files are those of `extract`, computed once, and never those of something else."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from semaim.data.sources import ArrayImages, Splits, image_folders
from semaim.data.subsets import Subset
from semaim.data.transforms import evaluation, pretraining
from semaim.errors import Interrupted, UserError
from semaim.evaluation import feature_cache
from semaim.evaluation.feature_cache import stored
from semaim.evaluation.features import Pass, extract
from semaim.models.vit import encode, vit_of
from support.evaluating import image_data, noise, surroundings, together

ASKED = [7, 0, 29, 3, 12, 4, 21]
FILES = ["cls.npy", "index.npy", "labels.npy", "mean.npy"]


@pytest.fixture
def run(tmp_path):
    with surroundings(tmp_path / "run") as run:
        yield run


@pytest.fixture
def kept(tmp_path):
    """The folder of features, which does not exist yet."""
    return tmp_path / "runs" / ".features"


class Encoder:
    """Two kinds of features, and a count of the batches."""

    def __init__(self, vit=None):
        self.vit = vit
        self.batches = 0

    def __call__(self, images_BCHW):
        self.batches += 1
        if self.vit is not None:
            return encode(self.vit, images_BCHW)
        return {"cls": images_BCHW.mean((2, 3)), "mean": images_BCHW[:, 0, 0, :5]}


def wanted(encoder, images, indices=ASKED, batch_size=2, title="test", **how):
    return Pass(encoder, image_data(Splits(images, images, images, []), **how), images, indices, batch_size, title)


def contents(folder):
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one, other):
    assert one.by_kind.keys() == other.by_kind.keys()
    for kind, rows in other.by_kind.items():
        assert one.by_kind[kind].dtype == rows.dtype
        assert np.array_equal(one.by_kind[kind], rows)
    assert torch.equal(one.labels_M, other.labels_M)
    assert torch.equal(one.index_M, other.index_M)
    return True


# What is stored


@pytest.mark.parametrize("workers", [0, 2])
def test_files_hold_what_extract_gives(run, kept, tiny_model, workers):
    encoder, images = Encoder(vit_of(tiny_model(image_size=8)).eval()), noise()
    whole = extract(wanted(encoder, images), run)
    found = stored(kept, "weights", wanted(encoder, images, workers=workers), run)
    assert same(found, whole)
    (folder,) = kept.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == FILES
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
    first = stored(kept, "weights", wanted(encoder, images), run)
    assert encoder.batches == 4
    before = contents(kept)
    assert same(stored(kept, "weights", wanted(encoder, images), run), first)
    assert encoder.batches == 4
    assert contents(kept) == before


def test_features_are_read_in_parts_and_not_changed_by_who_reads_them(run, kept):
    found = stored(kept, "weights", wanted(Encoder(), noise()), run)
    before = contents(kept)
    for rows in found.by_kind.values():
        assert isinstance(rows, np.memmap)
        rows[:] = -1  # a copy of one's own
    found.tensor("cls").zero_()
    found.index_M.zero_()
    assert contents(kept) == before


def test_a_copy_in_parts_is_the_same(run, kept, monkeypatch):
    encoder, images = Encoder(), noise()
    whole = extract(wanted(encoder, images, range(30)), run)
    monkeypatch.setattr(feature_cache, "COPIED_AT_ONCE", 4)
    assert same(stored(kept, "weights", wanted(encoder, images, range(30)), run), whole)


def test_without_a_folder_nothing_is_kept(run, tmp_path):
    encoder = Encoder()
    for _ in range(2):
        assert same(stored(None, "weights", wanted(encoder, noise()), run), extract(wanted(Encoder(), noise()), run))
    assert encoder.batches == 8
    assert not contents(tmp_path)


# Under which name


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
    stored(kept, "weights", wanted(Encoder(), noise()), run)
    (first,) = kept.iterdir()
    weights, other = DIFFERENT[what]()
    assert same(stored(kept, weights, other, run), extract(other, run))
    assert other.encode.batches > 0
    assert first in kept.iterdir()
    assert len(list(kept.iterdir())) == 2


def test_what_does_not_change_the_features_does_not_change_the_name(run, kept, tmp_path):
    stored(kept, "weights", wanted(Encoder(), noise()), run)
    before = contents(kept)
    images = ArrayImages(noise().images_NHWC.copy(), noise().labels.tolist(), "the same under another title")
    other = wanted(Encoder(), images, np.array(ASKED), batch_size=5, title="another", workers=1, max_unreadable=9)
    other.data.train_transform = pretraining(8, flip=0.1)
    with surroundings(tmp_path / "elsewhere") as elsewhere:
        elsewhere.seed, elsewhere.config = 77, {"x": 1}
        stored(kept, "weights", other, elsewhere)
    assert other.encode.batches == 0
    assert contents(kept) == before


class Vague:
    """A transform that does not say what it does."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, image):
        return self.scale * evaluation(8, 1.0)(image)


@pytest.mark.parametrize("make", [Vague, lambda scale: lambda image: scale * evaluation(8, 1.0)(image)])
def test_features_of_a_transform_that_does_not_say_what_it_does_are_not_kept(run, kept, make):
    encoder = Encoder()
    one = stored(kept, "weights", wanted(encoder, noise(), transform=make(1.0)), run)
    two = stored(kept, "weights", wanted(encoder, noise(), transform=make(2.0)), run)
    assert np.array_equal(2 * one.by_kind["cls"], two.by_kind["cls"])
    assert encoder.batches == 8
    assert not kept.exists()


def files_of_one_grey(folder, grey):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (grey, 0, 0)).save(folder / name / f"{i}.png")


def test_held_out_files_of_the_same_names_are_other_images(run, kept, tmp_path):
    """train/a/0.png and val/a/0.png: a bank in the place of the held-out images would make every accuracy 100 %."""
    for part, grey in (("train", 10), ("val", 200)):
        files_of_one_grey(tmp_path / "data" / part, grey)
    splits = image_folders(str(tmp_path / "data"))
    train, val = (
        stored(kept, "weights", wanted(Encoder(), part, range(4)), run) for part in (splits.train, splits.val)
    )
    assert val.by_kind["cls"][0, 0] > train.by_kind["cls"][0, 0]


def test_folders_of_files_of_the_same_names_are_other_images(run, kept, tmp_path):
    """Two data.root=..., such as a data set and the same images corrupted or smaller."""
    features = []
    for name, grey in (("clean", 10), ("corrupted", 200)):
        files_of_one_grey(tmp_path / name, grey)
        images = image_folders(str(tmp_path / name)).train
        features.append(stored(kept, "weights", wanted(Encoder(), images, range(4)), run).by_kind["cls"])
    assert features[1][0, 0] > features[0][0, 0]


# What goes wrong


class Killed(Encoder):
    """Ends in the second batch."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def __call__(self, images_BCHW):
        if self.batches == 1:
            self.end()
        return super().__call__(images_BCHW)


def fail():
    raise RuntimeError("out of memory")


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("end", "error"), [(fail, RuntimeError), (interrupt, Interrupted)])
def test_an_error_in_the_middle_leaves_nothing(run, kept, end, error):
    with pytest.raises(error):
        stored(kept, "weights", wanted(Killed(end), noise()), run)
    assert not list(kept.iterdir())
    run.stop.name = None
    encoder = Encoder()
    assert same(stored(kept, "weights", wanted(encoder, noise()), run), extract(wanted(Encoder(), noise()), run))
    assert encoder.batches == 4
    assert [len(list(folder.iterdir())) for folder in kept.iterdir()] == [4]


@pytest.mark.parametrize("moment", ["batch", "merge"])
def test_a_kill_leaves_nothing_that_counts_as_complete(run, kept, moment, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(np, "save", die)  # in the merge: labels are about to be written
            stored(kept, "weights", wanted(Killed(die) if moment == "batch" else Encoder(), noise()), run)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left_over,) = kept.iterdir()
    assert left_over.name.endswith(".tmp")
    assert list(left_over.iterdir())
    encoder = Encoder()
    assert same(stored(kept, "weights", wanted(encoder, noise()), run), extract(wanted(Encoder(), noise()), run))
    assert encoder.batches == 4


def test_another_run_may_be_faster(run, kept):
    """Two runs compute the same features; what the first has put there stays."""
    images = noise()

    def other_run():
        stored(kept, "weights", wanted(Encoder(), images), run)
        moments.append((next(iter(kept.glob("*[!p]"))) / "cls.npy").stat().st_ino)

    moments = []
    found = stored(kept, "weights", wanted(Killed(other_run), images), run)
    assert same(found, extract(wanted(Encoder(), images), run))
    (folder,) = kept.iterdir()
    assert moments == [(folder / "cls.npy").stat().st_ino]


def test_unreadable_images_are_missing(run, kept, damaged):
    asked = [5, 4, 3, 2, 1, 0]
    found = stored(kept, "weights", wanted(Encoder(), damaged, asked), run)
    assert same(found, extract(wanted(Encoder(), damaged, asked), run))
    assert found.index_M.tolist() == found.labels_M.tolist() == [4, 3, 1, 0]
    assert np.array_equal(found.by_kind["cls"][:, 0].argsort(), [3, 2, 1, 0])  # brighter ones first
    again = Encoder()
    assert same(stored(kept, "weights", wanted(again, damaged, asked), run), found)
    assert again.batches == 3  # computed anew: perhaps they can be read now


def test_too_many_unreadable_images_leave_nothing(run, kept, damaged):
    with pytest.raises(UserError, match=r"2 images cannot be read, more than data\.max_unreadable=1"):
        stored(kept, "weights", wanted(Encoder(), damaged, range(6), max_unreadable=1), run)
    with pytest.raises(UserError, match=r"no image of the 2 of this evaluation can be read"):
        stored(kept, "weights", wanted(Encoder(), damaged, [2, 5]), run)
    assert not list(kept.iterdir())


# Several processes


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_processes_store_what_one_stores(run, tmp_path, tiny_model, monkeypatch, world_size, batch_size):
    """Seven images: the last batch is smaller, but for 7; then, and with 5 processes, some have no batch at all."""
    monkeypatch.setattr(feature_cache, "COPIED_AT_ONCE", 3)
    encoder, images = Encoder(vit_of(tiny_model(image_size=8)).eval()), noise()
    alone = stored(tmp_path / "alone", "weights", wanted(encoder, images, batch_size=batch_size), run)
    assert same(alone, extract(wanted(encoder, images, batch_size=batch_size), run))
    encoder.batches = 0

    def work(processes):
        mine = dataclasses.replace(run, processes=processes)
        return stored(tmp_path / "kept", "weights", wanted(encoder, images, batch_size=batch_size), mine)

    assert all(same(found, alone) for found in together(world_size, work))
    assert encoder.batches == -(-7 // batch_size)  # shared, not repeated
    assert contents(tmp_path / "kept") == contents(tmp_path / "alone")
    assert all(same(found, alone) for found in together(world_size, work))
    assert encoder.batches == -(-7 // batch_size)


def test_processes_leave_out_unreadable_images(run, tmp_path, damaged):
    asked = [0, 1, 2, 5, 3, 4]  # the second process has the batch of 2 and 5 alone
    alone = stored(tmp_path / "alone", "weights", wanted(Encoder(), damaged, asked), run)
    assert alone.index_M.tolist() == [0, 1, 3, 4]

    def work(processes):
        mine = dataclasses.replace(run, processes=processes)
        return stored(tmp_path / "kept", "weights", wanted(Encoder(), damaged, asked), mine)

    assert all(same(found, alone) for found in together(2, work))
    assert contents(tmp_path / "kept") == contents(tmp_path / "alone")


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_in_one_of_several_processes_leaves_nothing_that_counts_as_complete(run, kept, fails):
    def work(processes):
        encoder = Killed(fail) if processes.rank == fails else Encoder()
        mine = dataclasses.replace(run, processes=processes)
        return stored(kept, "weights", wanted(encoder, noise(), range(12)), mine)

    with pytest.raises((RuntimeError, OSError)):  # the first process takes the folder away from under the others
        together(2, work)
    assert all(folder.name.endswith(".tmp") for folder in kept.iterdir())
    encoder = Encoder()
    assert same(
        stored(kept, "weights", wanted(encoder, noise(), range(12)), run),
        extract(wanted(Encoder(), noise(), range(12)), run),
    )
    assert encoder.batches == 6
