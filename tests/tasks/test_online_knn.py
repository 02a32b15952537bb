"""The k-NN evaluation during training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from semaim.data.image_sets import ArrayImages, Splits
from semaim.errors import UserError
from semaim.evaluation import knn
from semaim.evaluation.features import extract
from semaim.evaluation.online_knn import OnlineKNN
from semaim.tasks.knn import KNN
from support.evaluating import Source, image_data, noise, together


def test_accuracy_of_images_that_are_their_own_neighbours(run, splits, encoder):
    data = image_data(splits)
    result = OnlineKNN([1, 30], 8, None, None).accuracy(encoder, data, run)
    assert set(result) == {"knn_1_cls", "knn_1_mean", "knn_30_cls", "knn_30_mean"}
    assert result["knn_1_cls"] == result["knn_1_mean"] == 100.0
    images = splits.val
    half_wrong = ArrayImages(images.images_NHWC, [i % 3 if i < 15 else (i + 1) % 3 for i in range(30)], "other")
    data = image_data(dataclasses.replace(splits, val=half_wrong))
    accuracies = OnlineKNN([1], 8, None, None).accuracy(encoder, data, run)
    assert accuracies == {"knn_1_cls": 50.0, "knn_1_mean": 50.0}


def test_an_encoder_without_a_class_token(run, splits):
    result = OnlineKNN([1], 8, None, None).accuracy(lambda x: {"mean": x.flatten(1)}, image_data(splits), run)
    assert result == {"knn_1_mean": 100.0}


def test_the_labelled_images_are_the_bank(run, splits, monkeypatch):
    """As with STL-10, where most training images have no label."""
    passes = spied(monkeypatch)
    labelled, held_out = noise(12, seed=1), noise(9, seed=2)
    data = image_data(Splits(splits.train, labelled, held_out, splits.classes))
    OnlineKNN([1], 4, None, None).accuracy(lambda x: {"mean": x.flatten(1)}, data, run)
    assert [(wanted.images is images, len(wanted.indices), wanted.batch_size) for wanted, images in
            zip(passes, (labelled, held_out), strict=True)] == [(True, 12, 4), (True, 9, 4)]  # fmt: skip


def spied(monkeypatch):
    passes = []

    def spy(wanted, run):
        passes.append(wanted)
        return extract(wanted, run)

    monkeypatch.setattr("semaim.evaluation.online_knn.extract", spy)
    return passes


def test_a_subset_is_fixed_by_the_seed(run, splits, encoder, monkeypatch):
    passes, data = spied(monkeypatch), image_data(splits)
    some = OnlineKNN([1, 5], batch_size=8, max_bank=12, max_queries=7)
    results = [some.accuracy(encoder, data, run)]
    torch.manual_seed(1)
    results.append(some.accuracy(encoder, data, run))
    some.accuracy(encoder, data, dataclasses.replace(run, seed=6))
    asked = [list(wanted.indices) for wanted in passes]
    assert results[0] == results[1]
    assert asked[:2] == asked[2:4]
    assert asked[4] != asked[0]
    assert [len(indices) for indices in asked] == [12, 7] * 3
    assert all(indices == sorted(set(indices)) and set(indices) < set(range(30)) for indices in asked)
    OnlineKNN([1], batch_size=8, max_bank=30, max_queries=31).accuracy(encoder, data, run)
    assert [list(wanted.indices) for wanted in passes[6:]] == [list(range(30))] * 2  # enough for all


def test_several_processes_give_the_accuracy_of_one(run, encoder, monkeypatch):
    monkeypatch.setattr(knn, "QUERY_CHUNK", 8)
    train, val = noise(40, seed=1), noise(35, seed=2)
    data = image_data(Splits(train, train, val, ["a", "b", "c"]))
    some = OnlineKNN([1, 5], batch_size=3, max_bank=25, max_queries=20)
    alone = some.accuracy(encoder, data, run)
    found = together(2, lambda processes: some.accuracy(encoder, data, dataclasses.replace(run, processes=processes)))
    assert found == [alone, alone]
    assert any(0 < value < 100 for value in alone.values())


def test_data_without_labels_or_held_out_images_are_refused(run, splits, encoder):
    for unfit, message in (
        (Splits(splits.train, None, None, []), "these data have no labels"),
        (Splits(splits.train, splits.train, None, ["a"]), "these data have no held-out images"),
    ):
        with pytest.raises(UserError, match=message):
            OnlineKNN([1], 8, None, None).accuracy(encoder, image_data(unfit), run)
        with pytest.raises(UserError, match=message):
            KNN(Source(None), image_data(unfit), [1], 8, None)
