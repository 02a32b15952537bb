"""A network pass over images: rows are in the requested order and equal those of a single process."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal

import numpy as np
import pytest
import torch

from semaim.core.signals import StopRequest
from semaim.data.image_sets import Splits
from semaim.data.transforms import evaluation
from semaim.errors import Interrupted, UserError
from semaim.evaluation.features import Extraction, Features, extract, sort_rows
from semaim.models.vit import encode, vit_of
from support.evaluating import image_data, noise, together

ASKED = [7, 0, 29, 3, 12, 4, 21]


@pytest.fixture
def images():
    return noise()


@pytest.fixture
def vit(tiny_model):
    return vit_of(tiny_model(image_size=8)).eval()


def of(images, **how):
    return image_data(Splits(images, images, images, ["a", "b", "c"]), **how)


def sums(images_BCHW):
    """Simple features: the sum of each channel, and the largest pixel as a whole number."""
    return {"sum": images_BCHW.sum((2, 3)), "most": (1000 * images_BCHW.amax((1, 2, 3))).long()}


def prepared(images, indices):
    return torch.stack([evaluation(8, crop_ratio=1.0)(images.read(i)) for i in indices])


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_in_the_requested_order(run, images, tiny_model, workers):
    model = tiny_model(image_size=8).eval()
    vit = vit_of(model).eval()
    found = extract(Extraction(lambda x: encode(vit, x), of(images, workers=workers), images, ASKED, 3, "test"), run)
    with torch.no_grad():
        tokens_BND = model.encode(prepared(images, ASKED))
    assert set(found.by_kind) == {"cls", "mean"}
    assert np.abs(found.by_kind["cls"] - tokens_BND[:, 0].numpy()).max() <= 1e-5
    assert np.abs(found.by_kind["mean"] - tokens_BND[:, 1:].mean(1).numpy()).max() <= 1e-5
    assert found.by_kind["cls"].dtype == found.by_kind["mean"].dtype == np.float32
    assert found.index_M.tolist() == ASKED
    assert found.labels_M.tolist() == [i % 3 for i in ASKED]
    assert found.labels_M.dtype == found.index_M.dtype == torch.long


def test_any_kind_of_output_keeps_its_shape_and_type(run, images):
    """A classifier's predictions can be extracted too: whole numbers, one per image."""

    def everything(images_BCHW):
        return sums(images_BCHW) | {"grid": images_BCHW[:, :, :2, :5]}

    found = extract(Extraction(everything, of(images), images, ASKED, 2, "test"), run).by_kind
    expected = everything(prepared(images, ASKED))
    assert {kind: (value.dtype, value.shape) for kind, value in found.items()} == {
        "sum": (np.float32, (7, 3)),
        "most": (np.int64, (7,)),
        "grid": (np.float32, (7, 3, 2, 5)),
    }
    assert all(np.array_equal(found[kind], expected[kind].numpy()) for kind in expected)


def test_batches_are_as_requested_and_without_gradients(run, images):
    seen, gradients = [], []

    def spy(images_BCHW):
        seen.append(images_BCHW)
        gradients.append(torch.is_grad_enabled())
        return sums(images_BCHW)

    extract(Extraction(spy, of(images), images, range(4, 12), 3, "test"), run)
    assert [len(batch) for batch in seen] == [3, 3, 2]
    assert torch.equal(torch.cat(seen), prepared(images, range(4, 12)))
    assert gradients == [False] * 3
    assert torch.is_grad_enabled()


def test_in_order_by_hand():
    # Requested: 9, 2, 5, 7; received: 5, 7, 9 (2 is unreadable): rows 2, 0, 1 of it.
    assert sort_rows(np.array([5, 7, 9]), [9, 2, 5, 7]).tolist() == [2, 0, 1]


def test_a_tensor_of_features_is_a_copy_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    tensor = Features({"x": mapped}, torch.zeros(3), torch.zeros(3)).tensor("x")
    assert tensor.tolist() == [[0, 1], [2, 3], [4, 5]]
    tensor += 10
    mapped.flush()
    assert np.load(tmp_path / "x.npy").tolist() == [[0, 1], [2, 3], [4, 5]]


# Several processes


@pytest.mark.parametrize(
    ("world_size", "shared"),
    [(2, [[[7, 0], [12, 4]], [[29, 3], [21]]]), (5, [[[7, 0]], [[29, 3]], [[12, 4]], [[21]], []])],
)
def test_processes_share_the_batches_of_one(run, images, vit, world_size, shared):
    """Same batches, so not even rounding differs; the last one is smaller, and a process may have none."""
    alone = extract(Extraction(lambda x: encode(vit, x), of(images), images, ASKED, 2, "test"), run)
    known = {image.numpy().tobytes(): index for index, image in zip(ASKED, prepared(images, ASKED), strict=True)}

    def work(processes):
        batches = []

        def spy(images_BCHW):
            batches.append([known[image.numpy().tobytes()] for image in images_BCHW])
            return encode(vit, images_BCHW)

        mine = dataclasses.replace(run, processes=processes)
        return batches, extract(Extraction(spy, of(images), images, ASKED, 2, "test"), mine)

    results = together(world_size, work)
    assert [batches for batches, _ in results] == shared
    for _, found in results:  # every process gets all features
        assert all(np.array_equal(found.by_kind[kind], alone.by_kind[kind]) for kind in ("cls", "mean"))
        assert found.index_M.tolist() == ASKED
        assert found.labels_M.tolist() == [i % 3 for i in ASKED]


def test_a_signal_to_one_of_several_processes_ends_the_evaluation_on_all(run, images):
    """If one process stopped immediately, the others would wait for ever."""
    batches = {0: 0, 1: 0}

    def work(processes):
        stop = object.__new__(StopRequest)  # only the main thread receives signals
        stop.name = None

        def passed(images_BCHW):
            batches[processes.rank] += 1
            if processes.rank == 1:
                stop.name = "SIGUSR2"
            return sums(images_BCHW)

        mine = dataclasses.replace(run, processes=processes, stop=stop)
        with pytest.raises(Interrupted, match="SIGUSR2"):
            extract(Extraction(passed, of(images), images, ASKED, 1, "test"), mine)
        return stop.name

    assert together(2, work) == ["SIGUSR2", "SIGUSR2"]
    assert batches == {0: 4, 1: 1}  # of 4 and 3


def test_a_signal_ends_an_evaluation(run, images):
    batches = []

    def killed(images_BCHW):
        batches.append(len(images_BCHW))
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return sums(images_BCHW)

    with pytest.raises(Interrupted, match="SIGTERM"):
        extract(Extraction(killed, of(images), images, ASKED, 2, "test"), run)
    assert batches == [2, 2]  # of 2, 2, 2, 1: the current batch is the last


# Unreadable images


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_omitted(run, damaged, workers, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    data = of(damaged, workers=workers, max_unreadable=2)
    found = extract(Extraction(sums, data, damaged, [5, 4, 3, 2, 1, 0], 2, "test"), run)
    assert found.labels_M.tolist() == found.index_M.tolist() == [4, 3, 1, 0]
    assert np.array_equal(found.by_kind["sum"], sums(prepared(damaged, [4, 3, 1, 0]))["sum"].numpy())
    assert caplog.text.count("unreadable image") == 2
    assert f"{damaged.root}/2.png" in caplog.text
    data.max_unreadable = 1
    with pytest.raises(UserError, match=r"2 images cannot be read, more than data\.max_unreadable=1"):
        extract(Extraction(sums, data, damaged, [5, 4, 3, 2], 2, "test"), run)


@pytest.mark.parametrize("asked", [[5, 2], [2]])
def test_nothing_readable_is_an_error(run, damaged, asked):
    with pytest.raises(UserError, match=rf"no image of the {len(asked)} of this evaluation can be read"):
        extract(Extraction(sums, of(damaged), damaged, asked, 2, "test"), run)


def test_a_process_whose_images_are_all_unreadable(run, damaged):
    def work(processes):
        mine = dataclasses.replace(run, processes=processes)
        return extract(Extraction(sums, of(damaged), damaged, [0, 1, 2, 5, 3, 4], 2, "test"), mine)

    for found in together(2, work):  # the second process has only the batch of 2 and 5
        assert found.index_M.tolist() == [0, 1, 3, 4]
        assert np.array_equal(found.by_kind["sum"], sums(prepared(damaged, [0, 1, 3, 4]))["sum"].numpy())
