"""The k-NN evaluation during training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from semaim.data.image_sets import ArrayImages, Splits
from semaim.errors import UserError
from semaim.evaluation import knn
from semaim.evaluation.evaluator import Learner
from semaim.evaluation.features import extract
from semaim.evaluation.online_knn import OnlineKNN
from semaim.tasks.knn import KNN
from support.evaluating import Source, image_data, noise, together


class Given(Learner):
    """A learner with these features in place of a model's."""

    def features(self, images_BCHW):
        return self.model(images_BCHW)


def learner(encoder, data):
    return Given(encoder, {}, None, None, None, None, data, 0, 0)


def test_accuracy_of_images_that_are_their_own_neighbours(run, splits, encoder):
    data = image_data(splits)
    result = OnlineKNN(None, [1, 30], 8, None, None).evaluate(learner(encoder, data), run)
    assert set(result) == {"online/knn_1_cls", "online/knn_1_mean", "online/knn_30_cls", "online/knn_30_mean"}
    assert result["online/knn_1_cls"] == result["online/knn_1_mean"] == 100.0
    images = splits.val
    half_wrong = ArrayImages(images.images_NHWC, [i % 3 if i < 15 else (i + 1) % 3 for i in range(30)], "other")
    data = image_data(dataclasses.replace(splits, val=half_wrong))
    accuracies = OnlineKNN(None, [1], 8, None, None).evaluate(learner(encoder, data), run)
    assert accuracies == {"online/knn_1_cls": 50.0, "online/knn_1_mean": 50.0}


def test_an_encoder_without_a_class_token(run, splits):
    result = OnlineKNN(None, [1], 8, None, None).evaluate(
        learner(lambda x: {"mean": x.flatten(1)}, image_data(splits)), run
    )
    assert result == {"online/knn_1_mean": 100.0}


def test_the_labelled_images_are_the_bank(run, splits, monkeypatch):
    """As with STL-10, where most training images have no label."""
    passes = spied(monkeypatch)
    labelled, held_out = noise(12, seed=1), noise(9, seed=2)
    data = image_data(Splits(splits.train, labelled, held_out, splits.classes))
    OnlineKNN(None, [1], 4, None, None).evaluate(learner(lambda x: {"mean": x.flatten(1)}, data), run)
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
    some = OnlineKNN(None, [1, 5], batch_size=8, max_bank=12, max_queries=7)
    results = [some.evaluate(learner(encoder, data), run)]
    torch.manual_seed(1)
    results.append(some.evaluate(learner(encoder, data), run))
    some.evaluate(learner(encoder, data), dataclasses.replace(run, seed=6))
    asked = [list(wanted.indices) for wanted in passes]
    assert results[0] == results[1]
    assert asked[:2] == asked[2:4]
    assert asked[4] != asked[0]
    assert [len(indices) for indices in asked] == [12, 7] * 3
    assert all(indices == sorted(set(indices)) and set(indices) < set(range(30)) for indices in asked)
    OnlineKNN(None, [1], batch_size=8, max_bank=30, max_queries=31).evaluate(learner(encoder, data), run)
    assert [list(wanted.indices) for wanted in passes[6:]] == [list(range(30))] * 2  # enough for all


def test_several_processes_give_the_accuracy_of_one(run, encoder, monkeypatch):
    monkeypatch.setattr(knn, "QUERY_CHUNK", 8)
    train, val = noise(40, seed=1), noise(35, seed=2)
    data = image_data(Splits(train, train, val, ["a", "b", "c"]))
    some = OnlineKNN(None, [1, 5], batch_size=3, max_bank=25, max_queries=20)
    alone = some.evaluate(learner(encoder, data), run)
    found = together(
        2, lambda processes: some.evaluate(learner(encoder, data), dataclasses.replace(run, processes=processes))
    )
    assert found == [alone, alone]
    assert any(0 < value < 100 for value in alone.values())


def test_data_without_labels_or_held_out_images(run, splits, encoder):
    for unfit, message in (
        (Splits(splits.train, None, None, []), "these data have no labels"),
        (Splits(splits.train, splits.train, None, ["a"]), "these data have no held-out images"),
    ):
        with pytest.raises(UserError, match=message):
            KNN(Source(None), image_data(unfit), [1], 8, None, False)
        online = OnlineKNN(None, [1], 8, None, None)
        online.check(image_data(unfit))
        assert online.evaluate(learner(encoder, image_data(unfit)), run) == {}
