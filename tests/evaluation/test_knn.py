"""The nearest-neighbour classifier against a plain loop and scikit-learn; results do not depend on block sizes."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from semaim.errors import UserError
from semaim.evaluation import knn
from semaim.evaluation.knn import nearest_neighbours, vote
from support.evaluating import ALONE, together

KS = (1, 5, 20)


def clusters(seed, count, classes=6, width=12, spread=1.1):
    """Overlapping clusters, so that some neighbours have the wrong class: features and labels."""
    centres_CD = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels_M = torch.randint(classes, (count,), generator=generator)
    features_MD = centres_CD[labels_M] + spread * torch.randn(count, width, generator=generator)
    lengths_M1 = 0.1 + 5 * torch.rand(count, 1, generator=generator)  # which must not matter
    return (features_MD * lengths_M1).numpy(), labels_M


def alike(seed, count, width=16):
    """Features like those of a nearly untrained network: cosines differ from 1 by less than a millionth."""
    direction_D = np.random.default_rng(99).standard_normal(width)
    rng = np.random.default_rng(seed)
    features_MD = direction_D + 3e-4 * rng.standard_normal((count, width))
    return features_MD.astype(np.float32), torch.from_numpy(rng.integers(0, 4, count))


def slow_vote(bank_MD, labels_M, query_D, k, classes):
    """Class of one query, computed with python floats."""

    def cosine(a, b):
        dot, lengths = math.fsum(x * y for x, y in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
        return dot / lengths

    similar = sorted(
        ((cosine(row, query_D), label) for row, label in zip(bank_MD, labels_M, strict=True)), reverse=True
    )
    votes = [0.0] * classes
    for similarity, label in similar[:k]:
        votes[label] += math.exp(similarity / 0.07)
    return votes.index(max(votes))


def scikit_learn(bank_MD, labels_M, query_QD, k):
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute")
    theirs.fit(bank_MD.astype(np.float64), labels_M.numpy())
    return theirs.predict(query_QD.astype(np.float64)).tolist()


def at(*degrees):
    """Unit vectors in the plane."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_against_a_plain_loop():
    (bank_MD, labels_M), (query_QD, _) = clusters(0, 80), clusters(1, 40)
    predicted = nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE)
    assert list(predicted) == list(KS)
    bank, labels = bank_MD.tolist(), labels_M.tolist()
    for k in KS:
        assert predicted[k][:, 0].tolist() == [slow_vote(bank, labels, query, k, 6) for query in query_QD.tolist()], k
    assert not torch.equal(predicted[1][:, 0], predicted[20][:, 0])  # k matters here


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_scikit_learn(seed):
    (bank_MD, labels_M), (query_QD, query_labels_Q) = clusters(10 + seed, 500), clusters(20 + seed, 300)
    predicted = nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE)
    for k in KS:
        assert predicted[k][:, 0].tolist() == scikit_learn(bank_MD, labels_M, query_QD, k)
    accuracy = (predicted[20][:, 0] == query_labels_Q).float().mean()
    assert 0.7 < accuracy < 0.999  # neither hopeless nor trivial


def test_votes_by_hand():
    """Bank directions at 10, 20, 30 and 180 degrees from the query: one near neighbour against two farther ones."""
    labels_M, query_1D = torch.tensor([2, 1, 1, 0]), np.array([[3.0, 0.0]], np.float32)
    # exp(cos 10 / 0.07) = 1287 k, exp(cos 20 / 0.07) = 675 k, exp(cos 30 / 0.07) = 236 k: 2 wins over two of 1.
    predicted = nearest_neighbours(at(10, 20, -30, 180), labels_M, query_1D, [1, 2, 3, 4], 4, ALONE)
    assert {k: v.tolist() for k, v in predicted.items()} == {
        1: [[2, -1, -1, -1]],
        2: [[2, 1, -1, -1]],
        3: [[2, 1, -1, -1]],
        4: [[2, 1, 0, -1]],
    }
    # At 15 and 22 degrees the two of class 1 win: 983 k + 565 k.
    predicted = nearest_neighbours(at(10, 15, -22, 180), labels_M, query_1D, [2, 3], 4, ALONE)
    assert {k: v.tolist() for k, v in predicted.items()} == {2: [[2, 1, -1, -1]], 3: [[1, 2, -1, -1]]}


def test_weights_by_hand():
    """Two neighbours farther by 0.0487 weigh 2 exp(-0.0487 / 0.07) = 0.997 of the nearest; by 0.0483, 1.003."""
    labels = torch.tensor([[0, 1, 1, 2]])
    for farther, winner in ((0.0487, 0), (0.0483, 1)):
        similarity = torch.tensor([[0.9, 0.9 - farther, 0.9 - farther, -1.0]], dtype=torch.float64)
        predicted = vote(similarity, labels, [1, 3, 4], 3)
        assert {k: v.tolist() for k, v in predicted.items()} == {
            1: [[0, -1, -1]],
            3: [[winner, 1 - winner, -1]],
            4: [[winner, 1 - winner, 2]],
        }


# Independence of the other computations and of the method


@pytest.mark.parametrize("features", [clusters, alike])
def test_a_number_of_neighbours_does_not_depend_on_the_others(features):
    (bank_MD, labels_M), (query_QD, _) = features(0, 300), features(1, 100)
    ks = [40, 1, 7, 20, 2]
    predicted = nearest_neighbours(bank_MD, labels_M, query_QD, ks, 6, ALONE)
    assert list(predicted) == ks
    for k in ks:
        assert equal({k: predicted[k]}, nearest_neighbours(bank_MD, labels_M, query_QD, [k], 6, ALONE)), k
        assert predicted[k][:, 0].tolist() == scikit_learn(bank_MD, labels_M, query_QD, k), k


def test_similarities_below_float32_resolution():
    """Data of the previous test: float32 has few distinct similarities, float64 distinguishes all."""
    (bank_MD, _), (query_QD, _) = alike(0, 300), alike(1, 1)
    normed = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank_MD, query_QD)]
    assert len(np.unique(normed[0] @ normed[1].T)) < 30
    normed = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (bank_MD, query_QD))]
    assert len(np.unique(normed[0] @ normed[1].T)) == 300


@pytest.mark.parametrize("features", [clusters, alike])
@pytest.mark.parametrize(("block", "chunk"), [(80, 40), (7, 1), (20, 7), (1, 40), (79, 39), (1000, 1000)])
def test_blocks_and_chunks_change_nothing(monkeypatch, features, block, chunk):
    """Including blocks with fewer images than neighbours, and a remainder of one image."""
    (bank_MD, labels_M), (query_QD, _) = features(0, 80), features(1, 40)
    whole = nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE)
    monkeypatch.setattr(knn, "BANK_BLOCK", block)
    monkeypatch.setattr(knn, "QUERY_CHUNK", chunk)
    assert equal(nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE), whole)


def test_no_more_than_a_block_and_a_chunk_are_compared_at_once(monkeypatch):
    """Memory stays bounded for any size of the bank."""
    shapes, normalised = [], knn._normalise

    def spy(rows, device):
        shapes.append(len(rows))
        return normalised(rows, device)

    monkeypatch.setattr(knn, "_normalise", spy)
    monkeypatch.setattr(knn, "BANK_BLOCK", 30)
    monkeypatch.setattr(knn, "QUERY_CHUNK", 16)
    (bank_MD, labels_M), (query_QD, _) = clusters(0, 80), clusters(1, 40)
    nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE)
    assert shapes == [16, 16, 8, 30, 30, 20]  # each part of the bank once


@pytest.mark.parametrize("queries", [1, 2, 3, 99, 101])
def test_any_number_of_queries(monkeypatch, queries):
    (bank_MD, labels_M), (query_QD, _) = clusters(0, 80), clusters(1, queries)
    one_by_one = [nearest_neighbours(bank_MD, labels_M, query_QD[q : q + 1], KS, 6, ALONE) for q in range(queries)]
    expected = {k: torch.cat([each[k] for each in one_by_one]) for k in KS}
    assert equal(nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE), expected)
    monkeypatch.setattr(knn, "QUERY_CHUNK", 3)
    assert equal(nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE), expected)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("queries", [1, 8, 45])
def test_processes_give_what_one_gives(monkeypatch, world_size, queries):
    """Chunks of 8: one query leaves all processes but the first idle, 45 make six chunks, the last with five."""
    monkeypatch.setattr(knn, "BANK_BLOCK", 30)
    monkeypatch.setattr(knn, "QUERY_CHUNK", 8)
    (bank_MD, labels_M), (query_QD, _) = alike(0, 80), alike(1, queries)
    one = nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE)

    def work(processes):
        return nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, processes)

    assert all(equal(found, one) for found in together(world_size, work))


def test_processes_share_the_queries(monkeypatch):
    monkeypatch.setattr(knn, "QUERY_CHUNK", 8)
    (bank_MD, labels_M), (query_QD, _) = clusters(0, 80), clusters(1, 45)
    voted = []

    def spy(similarity_QK, *rest):
        voted.append(len(similarity_QK))
        return vote(similarity_QK, *rest)

    monkeypatch.setattr(knn, "vote", spy)
    together(2, lambda processes: nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, processes))
    assert sorted(voted) == [5, 8, 8, 8, 8, 8]  # 45 in total, not 90


@pytest.mark.parametrize("mode", ["c", "r"])
def test_features_may_be_mapped_from_files(tmp_path, mode):
    (bank_MD, labels_M), (query_QD, _) = clusters(0, 80), clusters(1, 40)
    for name, rows in (("bank", bank_MD), ("query", query_QD)):
        np.save(tmp_path / f"{name}.npy", rows)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in ("bank", "query")]
    with warnings.catch_warnings():
        if mode == "c":  # the type of the feature store; torch warns of read-only arrays
            warnings.simplefilter("error")
        else:
            warnings.simplefilter("ignore")
        found = nearest_neighbours(mapped[0], labels_M, mapped[1], KS, 6, ALONE)
    assert equal(found, nearest_neighbours(bank_MD, labels_M, query_QD, KS, 6, ALONE))
    assert all(np.array_equal(array, rows) for array, rows in zip(mapped, (bank_MD, query_QD), strict=True))


def test_more_neighbours_than_the_bank_has():
    (bank_MD, labels_M), (query_QD, _) = clusters(0, 20), clusters(1, 4)
    # With the whole bank each class has the sum of all its weights.
    everyone = nearest_neighbours(bank_MD, labels_M, query_QD, [20], 6, ALONE)[20][:, 0].tolist()
    assert everyone == [slow_vote(bank_MD.tolist(), labels_M.tolist(), query, 20, 6) for query in query_QD.tolist()]
    with pytest.raises(UserError, match=r"k=21 neighbours asked for, but there are 20 labelled images: lower ks"):
        nearest_neighbours(bank_MD, labels_M, query_QD, [1, 21, 3], 6, ALONE)
