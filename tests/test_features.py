"""Nearest neighbours against a plain loop and scikit-learn; features come in the order asked for."""

from __future__ import annotations

import logging
import math
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from semaim.data import ImageData
from semaim.data.sources import ArrayImages, FileImages, Splits
from semaim.data.transforms import evaluation, pretraining
from semaim.distributed import Processes
from semaim.errors import Interrupted, UserError
from semaim.features import extract, nearest_neighbours
from semaim.run_context import Run
from semaim.runfolder import RunFolder
from semaim.stopping import SIGNALS, StopRequest
from semaim.tasks.knn import KNN, NearestNeighbours

KS = (1, 5, 20)


def clusters(seed, count, classes=6, width=12, spread=1.1):
    """Overlapping clusters, so that some neighbours are of the wrong class: features and labels."""
    centres_CD = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels_M = torch.randint(classes, (count,), generator=generator)
    features_MD = centres_CD[labels_M] + spread * torch.randn(count, width, generator=generator)
    return features_MD * (0.1 + 5 * torch.rand(count, 1, generator=generator)), labels_M  # lengths must not matter


def slow_vote(bank_MD, labels_M, query_D, k, classes):
    """The class of one query, with python's floats."""

    def cosine(a, b):
        dot, lengths = sum(x * y for x, y in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
        return dot / lengths

    similar = sorted(
        ((cosine(row, query_D), label) for row, label in zip(bank_MD, labels_M, strict=True)), reverse=True
    )
    votes = [0.0] * classes
    for similarity, label in similar[:k]:
        votes[label] += math.exp(similarity / 0.07)
    return votes.index(max(votes))


def test_against_a_plain_loop():
    (bank_MD, labels_M), (query_MD, _) = clusters(0, 80), clusters(1, 40)
    predicted = nearest_neighbours(bank_MD, labels_M, query_MD, KS, classes=6)
    assert list(predicted) == list(KS)
    bank, labels = bank_MD.tolist(), labels_M.tolist()
    for k in KS:
        assert predicted[k].tolist() == [slow_vote(bank, labels, query, k, 6) for query in query_MD.tolist()], k
    assert not torch.equal(predicted[1], predicted[20])  # k matters here


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_scikit_learn(seed):
    (bank_MD, labels_M), (query_MD, query_labels_M) = clusters(10 + seed, 500), clusters(20 + seed, 300)
    predicted = nearest_neighbours(bank_MD, labels_M, query_MD, KS, classes=6)
    for k in KS:
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        theirs.fit(bank_MD.double().numpy(), labels_M.numpy())
        assert predicted[k].tolist() == theirs.predict(query_MD.double().numpy()).tolist()
    accuracy = (predicted[20] == query_labels_M).float().mean()
    assert 0.7 < accuracy < 0.999  # neither hopeless nor trivial


def test_votes_by_hand():
    """Bank directions at 10, 20, 30 and 180 degrees from the query: one near neighbour against two farther ones."""

    def at(degrees):
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    bank_MD, labels_M = torch.tensor([at(10), at(20), at(-30), at(180)]), torch.tensor([2, 1, 1, 0])
    # exp(cos 10 / 0.07) = 1287 k, exp(cos 20 / 0.07) = 675 k, exp(cos 30 / 0.07) = 236 k: 2 wins over two of 1.
    predicted = nearest_neighbours(bank_MD, labels_M, torch.tensor([[3.0, 0.0]]), [1, 2, 3, 4], classes=4)
    assert {k: v.tolist() for k, v in predicted.items()} == {1: [2], 2: [2], 3: [2], 4: [2]}
    # At 15 and 22 degrees the two of class 1 win: 983 k + 565 k.
    bank_MD[1:3] = torch.tensor([at(15), at(-22)])
    predicted = nearest_neighbours(bank_MD, labels_M, torch.tensor([[3.0, 0.0]]), [2, 3], classes=4)
    assert {k: v.tolist() for k, v in predicted.items()} == {2: [2], 3: [1]}


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_change_nothing(chunk):
    (bank_MD, labels_M), (query_MD, _) = clusters(0, 80), clusters(1, 40)
    whole = nearest_neighbours(bank_MD, labels_M, query_MD, KS, classes=6)
    parts = nearest_neighbours(bank_MD, labels_M, query_MD, KS, classes=6, chunk=chunk)
    assert all(torch.equal(parts[k], whole[k]) for k in KS)


def test_more_neighbours_than_the_bank_has():
    (bank_MD, labels_M), (query_MD, _) = clusters(0, 20), clusters(1, 4)
    assert len(nearest_neighbours(bank_MD, labels_M, query_MD, [20], 6)[20]) == 4
    with pytest.raises(UserError, match=r"k=21 neighbours asked for, but the bank has 20 images"):
        nearest_neighbours(bank_MD, labels_M, query_MD, [1, 21], 6)
    for ks in ([], [0], [5, -1]):
        with pytest.raises(UserError, match=r"must be positive numbers of neighbours"):
            NearestNeighbours(ks, batch_size=8)


# Features


@pytest.fixture
def run(tmp_path):
    """The surroundings of a task, on one process."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    yield Run(RunFolder(tmp_path / "run"), {}, Processes(0, 1, torch.device("cpu")), 5, stop, None)
    stop.restore()
    assert {number: signal.getsignal(number) for number in SIGNALS} == previous


def image_data(splits, workers=0, max_unreadable=3):
    return ImageData(lambda: splits, None, 8, 4, pretraining(8), evaluation(8, crop_ratio=1.0), workers, max_unreadable)


@pytest.fixture
def noise():
    """Thirty images of noise in three classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3))
    images = ArrayImages(pixels, [i % 3 for i in range(30)], "noise")
    return Splits(images, images, images, ["a", "b", "c"])


@pytest.fixture
def model(tiny_model):
    return tiny_model(image_size=8).eval()


@pytest.mark.parametrize("workers", [0, 2])
def test_features_come_in_the_order_asked_for(run, noise, model, workers):
    asked = [7, 0, 29, 3, 12, 4, 21]
    features, labels = extract(model, image_data(noise, workers), noise.val, asked, 3, run, "test")
    images_BCHW = torch.stack([evaluation(8, crop_ratio=1.0)(noise.val.read(i)) for i in asked])
    with torch.no_grad():
        tokens_BND = model.encode(images_BCHW)
    assert (features["cls"] - tokens_BND[:, 0]).abs().max() <= 1e-5
    assert (features["mean"] - tokens_BND[:, 1:].mean(1)).abs().max() <= 1e-5
    assert labels.tolist() == [i % 3 for i in asked]
    assert features["cls"].dtype == torch.float32
    assert not features["cls"].requires_grad


def test_two_processes_share_the_work(run, noise, model, monkeypatch):
    """Both processes played by this one: the second first, then the first is handed what the second has."""
    asked, parts = [7, 0, 29, 3, 12, 4, 21], []
    expected, labels = extract(model, image_data(noise), noise.val, asked, 3, run, "test")

    def gather(processes, value):
        parts.insert(0, value)
        return list(parts) if processes.rank == 0 else [value]

    monkeypatch.setattr(Processes, "gather", gather)
    for rank in (1, 0):
        run.processes = Processes(rank, 2, torch.device("cpu"))
        features, shared_labels = extract(model, image_data(noise), noise.val, asked, 3, run, "test")
    assert [torch.cat([part[3] for part in process]).tolist() for process in parts] == [[7, 29, 12, 21], [0, 3, 4]]
    assert (features["mean"] - expected["mean"]).abs().max() <= 1e-5
    assert (features["cls"] - expected["cls"]).abs().max() <= 1e-5
    assert torch.equal(shared_labels, labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out(run, model, tmp_path, workers, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_text("no image")
    images = FileImages(tmp_path, [f"{i}.png" for i in range(6)], list(range(6)))
    data = image_data(Splits(images, images, images, list("abcdef")), workers, max_unreadable=2)
    features, labels = extract(model, data, images, [5, 4, 3, 2, 1, 0], 2, run, "test")
    assert labels.tolist() == [4, 3, 1, 0]
    assert len(features["cls"]) == len(features["mean"]) == 4
    assert caplog.text.count("unreadable image") == 2
    data.max_unreadable = 1
    with pytest.raises(UserError, match=r"2 images cannot be read, more than data\.max_unreadable=1"):
        extract(model, data, images, [5, 4, 3, 2], 2, run, "test")
    data.max_unreadable = 2
    with pytest.raises(UserError, match=r"no image of the 2 of this evaluation can be read"):
        extract(model, data, images, [5, 2], 2, run, "test")


def test_a_signal_ends_an_evaluation(run, noise, model):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        extract(model, image_data(noise), noise.val, [0, 1, 2], 2, run, "test")


# Accuracy


def test_accuracy_of_images_that_are_their_own_neighbours(run, noise, model):
    data = image_data(noise)
    result = NearestNeighbours([1, 30], batch_size=8).accuracy(model, data, run)
    assert set(result) == {"knn_1_cls", "knn_1_mean", "knn_30_cls", "knn_30_mean"}
    assert result["knn_1_cls"] == result["knn_1_mean"] == 100.0
    half_wrong = ArrayImages(noise.val.images_NHWC, [i % 3 if i < 15 else (i + 1) % 3 for i in range(30)], "other")
    data.source = Splits(noise.train, noise.train, half_wrong, noise.classes)
    assert NearestNeighbours([1], batch_size=8).accuracy(model, data, run) == {"knn_1_cls": 50.0, "knn_1_mean": 50.0}


def test_a_subset_is_fixed_by_the_seed(run, noise, model, monkeypatch):
    asked = []

    def spy(model, data, images, indices, *rest):
        asked.append(list(indices))
        return extract(model, data, images, indices, *rest)

    monkeypatch.setattr("semaim.tasks.knn.extract", spy)
    settings, data = NearestNeighbours([1, 5], batch_size=8, max_bank=12, max_queries=7), image_data(noise)
    results = [settings.accuracy(model, data, run)]
    torch.manual_seed(1)
    results.append(settings.accuracy(model, data, run))
    run.seed = 6
    settings.accuracy(model, data, run)
    assert results[0] == results[1]
    assert asked[:2] == asked[2:4]
    assert asked[4] != asked[0]
    assert [len(indices) for indices in asked] == [12, 7] * 3
    assert all(indices == sorted(set(indices)) and set(indices) < set(range(30)) for indices in asked)
    NearestNeighbours([1], batch_size=8, max_bank=30, max_queries=31).accuracy(model, data, run)
    assert asked[6:] == [list(range(30))] * 2  # enough for all


def test_data_without_labels_are_refused(run, noise, model):
    data = image_data(Splits(noise.train, None, None, []))
    with pytest.raises(UserError, match=r"no labelled training and held-out images"):
        NearestNeighbours([1], batch_size=8).accuracy(model, data, run)
    with pytest.raises(UserError, match=r"say which with checkpoint=runs/<name>"):
        KNN(None, data, NearestNeighbours([1], batch_size=8))
