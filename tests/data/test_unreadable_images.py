"""Training replaces unreadable images up to a limit; evaluation leaves them out."""

from __future__ import annotations

import logging
import os
import struct
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from semaim.data.image_sets import FileImages
from semaim.data.loading import (
    EvaluationImages,
    Item,
    StepPlan,
    TrainingImages,
    UnreadableImages,
    evaluation_batches,
    training_batches,
)
from semaim.data.samples import read_images
from semaim.data.transforms import evaluation, pretraining
from semaim.errors import UserError
from support.loaders import loading


@pytest.fixture
def broken(tmp_path, caplog, monkeypatch):
    """Eight files; numbers 2 (truncated JPEG), 3 (empty) and 6 (text) are unreadable; grey level = number."""
    files = [f"{i}.png" for i in range(8)]
    files[2] = "2.jpg"
    for i in (0, 1, 4, 5, 7):
        Image.new("L", (6, 4), i).save(tmp_path / f"{i}.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "2.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:1500])
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "6.png").write_text("this is no image\n")
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)  # an earlier run may have disabled it
    caplog.set_level(logging.WARNING, logger="semaim")
    return FileImages(tmp_path, files, list(range(8)))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_unreadable_images(broken, caplog, workers):
    grey = pretraining(4, mean=(0, 0, 0), std=(1, 1, 1))
    dataset, plan = TrainingImages(broken, grey, seed=0), StepPlan(dataset_size=8, batch_size=4, seed=0)
    unreadable, replaced = UnreadableImages(limit=3), {2: 4, 3: 4, 6: 7}
    for step, batch in zip(range(6), training_batches(dataset, plan, range(6), *loading(workers)), strict=True):
        planned = [item.index for item in plan.micro_batches(step)[0]]
        seen = [replaced.get(index, index) for index in planned]
        assert batch.index_B.tolist() == batch.labels_B.tolist() == seen
        assert batch.images_BCHW[:, 0, 0, 0].tolist() == seen  # no row of a batch is missing
        unreadable.record(batch)
    assert set(unreadable.reasons) == {broken.name(i) for i in (2, 3, 6)}
    messages = [record.getMessage() for record in caplog.records]
    assert [sum(broken.name(i) in message for message in messages) for i in (2, 3, 6)] == [1, 1, 1]
    assert [message.split(",")[0] for message in messages] == [f"unreadable image {n}" for n in (1, 2, 3)]


def test_too_many_unreadable_images_end_the_run(broken):
    dataset = EvaluationImages(broken, evaluation(4), list(range(8)))
    batches = list(evaluation_batches(dataset, 3, *loading(0)))  # images 0 1 2, 3 4 5, 6 7: one unreadable in each
    unreadable = UnreadableImages(limit=2)
    for batch in [*batches[:2], *batches[:2]]:  # repeated ones are not counted again
        unreadable.record(batch)
    with pytest.raises(UserError, match=r"3 images cannot be read, more than data\.max_unreadable=2.*6\.png"):
        unreadable.record(batches[2])


def test_a_whole_set_of_unreadable_images(broken, monkeypatch):
    monkeypatch.setattr(TrainingImages, "MAX_IN_A_ROW", 2)
    dataset = TrainingImages(broken, pretraining(4), seed=0)
    with pytest.raises(UserError, match=r"2 images in a row cannot be read.*3\.png"):
        next(training_batches(dataset, StepPlan(8, 8, 0), range(1), *loading(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_omits_unreadable_images(broken, workers):
    dataset = EvaluationImages(broken, evaluation(4, mean=(0, 0, 0), std=(1, 1, 1)), [7, 6, 5, 3, 2, 1])
    batches = list(evaluation_batches(dataset, 2, *loading(workers)))
    assert [batch.index_B.tolist() for batch in batches] == [[7], [5], [1]]
    assert [batch.labels_B.tolist() for batch in batches] == [[7], [5], [1]]
    assert [batch.images_BCHW[:, 1, 2, 3].tolist() for batch in batches] == [[7], [5], [1]]
    assert [[name for name, _ in batch.unreadable] for batch in batches] == [
        [broken.name(6)],
        [broken.name(3)],
        [broken.name(2)],
    ]
    (nothing,) = evaluation_batches(EvaluationImages(broken, dataset.transform, [2, 3]), 2, *loading(0))
    assert (len(nothing.images_BCHW), len(nothing.index_B), len(nothing.unreadable)) == (0, 0, 2)


@pytest.mark.parametrize("kind", [TrainingImages, EvaluationImages])
def test_an_image_that_pillow_refuses_for_its_size_is_unreadable(broken, monkeypatch, kind):
    """A broken header can claim any size."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)  # ours have 24, more than twice that
    transform = evaluation(4)
    if kind is EvaluationImages:
        sample = EvaluationImages(broken, transform, [0])[0]
        assert sample.image is None
        assert sample.unreadable[0][0] == broken.name(0)
    else:
        with pytest.raises(UserError, match="images in a row cannot be read"):
            TrainingImages(broken, transform, 0)[Item(0, 0, 0)]


def fails(_):
    raise OSError("no transform today")


FAULTS = [RuntimeError("cannot decode"), struct.error("4 bytes\nerror: forged"), MemoryError(), KeyError("x")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_any_exception_of_reading_means_unreadable(broken, monkeypatch, fault):
    expected = f"{type(fault).__name__}: {fault}".replace("\n", " ").strip()
    monkeypatch.setattr("semaim.data.image_sets.read_rgb", mock.Mock(side_effect=fault))
    sample = EvaluationImages(broken, evaluation(4), [0])[0]
    assert (sample.image, sample.unreadable) == (None, [(broken.name(0), expected)])
    with pytest.raises(UserError, match="8 images in a row cannot be read") as raised:  # each is counted once
        TrainingImages(broken, pretraining(4), 0)[Item(0, 0, 0)]
    assert f"{broken.name(2)!r} ({expected})" in str(raised.value)
    assert broken.name(3) not in str(raised.value)  # the first three
    with pytest.raises(UserError, match="none of these images can be read"):
        read_images(broken, [0, 1], evaluation(4))


def test_a_damaged_avif_is_unreadable(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.avif")
    header, data = (tmp_path / "a.avif").read_bytes().split(b"mdat")
    (tmp_path / "a.avif").write_bytes(header + b"mdat" + bytes(len(data)))
    with pytest.raises(RuntimeError), Image.open(tmp_path / "a.avif") as image:  # not one of Pillow's usual errors
        image.load()
    sample = EvaluationImages(FileImages(tmp_path, ["a.avif"], None), evaluation(4), [0])[0]
    assert sample.image is None
    assert sample.unreadable[0][1].startswith("RuntimeError: ")


def test_an_error_of_the_transform_ends_the_run_and_blames_no_image(broken):
    one_line = r"fails on '\S+/0\.png': OSError: no transform today$"
    for dataset, item, option in (
        (EvaluationImages(broken, fails, [0]), 0, r"data\.eval_transform "),
        (TrainingImages(broken, fails, 0), Item(0, 0, 0), r"the augmentation \(data\.train_transform, or .*\) "),
    ):
        with pytest.raises(UserError, match=option + one_line):
            dataset[item]
    with pytest.raises(UserError, match=r"data\.eval_transform " + one_line):
        read_images(broken, [0], fails)


def test_the_message_gives_the_first_reasons(broken):
    unreadable = UnreadableImages(limit=2)
    (batch,) = evaluation_batches(EvaluationImages(broken, evaluation(4), list(range(8))), 8, *loading(0))
    with pytest.raises(UserError) as raised:
        unreadable.record(batch)
    first, second, third = (f"{broken.name(i)!r}" for i in (2, 3, 6))
    assert f"{first} (OSError: image file is truncated" in str(raised.value)
    assert str(raised.value).index(first) < str(raised.value).index(second) < str(raised.value).index(third)
    assert "\n" not in str(raised.value)


def test_names_are_quoted(tmp_path, caplog, monkeypatch):
    """A newline in a name forges no line of the log, and a name that is not UTF-8 can be logged."""
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    forged, latin = "a\nerror: forged.png", os.fsdecode(b"\xe9.png")
    for name in (forged, latin):
        (tmp_path / name).write_bytes(b"")
    images = FileImages(tmp_path, [forged, latin], None)
    assert len(images.fingerprint()) == 64
    unreadable = UnreadableImages(limit=1)
    (batch,) = evaluation_batches(EvaluationImages(images, evaluation(4), [0, 1]), 2, *loading(0))
    with pytest.raises(UserError) as raised:
        unreadable.record(batch)
    for message in (*caplog.messages, str(raised.value)):
        assert "\n" not in message
        message.encode()
    assert r"a\nerror: forged.png'" in caplog.messages[0]
    assert r"\udce9.png'" in caplog.messages[1]


def test_each_is_logged_once_however_many_passes_read_it(broken, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    told: set[str] = set()
    for _ in range(3):
        passed = UnreadableImages(3, told)
        (batch,) = evaluation_batches(EvaluationImages(broken, evaluation(4), list(range(8))), 8, *loading(0))
        passed.record(batch)
        assert len(passed.reasons) == 3
    assert [message.split(",")[0] for message in caplog.messages] == [f"unreadable image {n}" for n in (1, 2, 3)]
