"""Accuracy and confusion matrix of predictions by hand, and the files with them."""

from __future__ import annotations

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from semaim.core.distributed import Processes
from semaim.data.image_sets import Splits
from semaim.data.samples import read_images
from semaim.evaluation.accuracy import Predictions, named, predict_classes
from semaim.runs.journal import Journal
from support.commands import journal
from support.evaluating import ALONE, CPU, image_data, noise, surroundings, together

# Seven images of cat, dog and emu, none of fox: two of three cats and one of three dogs correct, the emu taken as fox.
LABELS = [0, 1, 1, 0, 2, 1, 0]
PREDICTED = [0, 0, 1, 0, 3, 2, 1]
CLASSES = ["cat", "dog, hot", "emu", "fox"]


@pytest.fixture
def answers():
    return Predictions(torch.tensor(PREDICTED), torch.tensor(LABELS), CLASSES)


def test_accuracy_and_confusion_by_hand(answers):
    assert answers.accuracy == pytest.approx(100 * 3 / 7, abs=1e-12)
    assert answers.confusion().tolist() == [[2, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 9, 3000), rng.integers(2, 12, 3000)
    answers = Predictions(torch.from_numpy(predicted), torch.from_numpy(labels), [str(n) for n in range(12)])
    assert answers.accuracy == pytest.approx(100 * accuracy_score(labels, predicted), abs=1e-9)
    theirs = confusion_matrix(labels, predicted, labels=range(12))
    assert answers.confusion().tolist() == theirs.tolist()


def test_accuracy_is_as_exact_as_the_number_of_images():
    """A float32 mean would have wrong digits."""
    right_M = torch.arange(50_001) >= 12_345
    answers = Predictions(right_M.long(), torch.ones(50_001, dtype=torch.long), ["a", "b"])
    assert answers.accuracy == pytest.approx(100 * (50_001 - 12_345) / 50_001, abs=1e-10)


def test_top_five_and_loss_against_scikit_learn(run):
    """Of a set with a partial last batch, on one process and on two; ties go to the first class, as in argmax."""
    images, classes = noise(35), [str(n) for n in range(12)]
    weight_DC = torch.randn(12, 8 * 8 * 3, generator=torch.Generator().manual_seed(0)).T / 10
    read = image_data(Splits(images, images, images, classes))

    def logits(images_BCHW):
        return torch.stack([images_BCHW.flatten(1) @ weight_DC, torch.zeros(len(images_BCHW), 12)])

    def measured(processes):
        mine = dataclasses.replace(run, processes=processes)
        return predict_classes(["linear", "equal"], logits, read, images, 8, mine)

    found = measured(ALONE)
    _, images_MCHW = read_images(images, range(35), read.eval_transform)
    scores_MC = logits(images_MCHW)[0].double().softmax(1).numpy()
    labels_M = [images.label(i) for i in range(35)]
    assert found["linear"].metrics() == {
        "accuracy": pytest.approx(100 * top_k_accuracy_score(labels_M, scores_MC, k=1, labels=range(12)), abs=1e-9),
        "top5": pytest.approx(100 * top_k_accuracy_score(labels_M, scores_MC, k=5, labels=range(12)), abs=1e-9),
        "loss": pytest.approx(log_loss(labels_M, scores_MC, labels=range(12)), rel=1e-6),
    }
    # The three classes of the images are the first of twelve: argmax finds one of them, the first five all.
    assert found["equal"].metrics() == {
        "accuracy": pytest.approx(100 * 12 / 35), "top5": 100.0, "loss": pytest.approx(math.log(12), rel=1e-6),
    }  # fmt: skip
    values = named(found)
    assert list(values) == ["linear", "linear_top5", "linear_loss", "equal", "equal_top5", "equal_loss"]
    assert together(2, lambda processes: named(measured(processes))) == [values, values]


def test_of_five_classes_or_fewer_no_top_five_is_reported():
    ranked_MR, labels_M, loss_M = torch.arange(5).expand(3, -1), torch.tensor([0, 0, 4]), torch.tensor([1.0, 2.0, 6.0])
    answers = Predictions.ranked(ranked_MR, labels_M, list("abcde"), loss_M)
    assert answers.metrics() == {"accuracy": pytest.approx(200 / 3), "loss": 3.0}
    assert "top5" in Predictions.ranked(ranked_MR, labels_M, list("abcdef")).metrics()


def test_all_right_and_all_wrong():
    labels = torch.tensor(LABELS)
    assert Predictions(labels, labels, CLASSES).accuracy == 100.0
    assert Predictions((labels + 1) % 4, labels, CLASSES).accuracy == 0.0
    assert Predictions(torch.tensor([0, 0]), torch.tensor([0, 0]), ["one class"]).confusion().tolist() == [[2]]


def test_files_and_the_journal(answers, tmp_path):
    with surroundings(tmp_path) as run:
        run.journal = Journal(run.folder.journal)
        answers.write(run)
        run.journal.close()
    assert (tmp_path / "per_class.csv").read_bytes().decode() == (
        'class,images,accuracy\ncat,3,66.6667\n"dog, hot",3,33.3333\nemu,1,0.0000\nfox,0,\n'
    )
    with open(tmp_path / "confusion.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "cat", "dog, hot", "emu", "fox"],
            ["cat", "2", "1", "0", "0"],
            ["dog, hot", "1", "1", "1", "0"],
            ["emu", "0", "0", "0", "1"],
            ["fox", "0", "0", "0", "0"],
        ]
    lines = [{key: value for key, value in line.items() if key != "time"} for line in journal(tmp_path)]
    assert sorted(line["artifact"] for line in lines) == ["confusion.csv", "per_class.csv"]
    assert all(line.keys() == {"artifact"} for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.csv", "metrics.jsonl", "per_class.csv"]


def test_only_the_first_process_writes(answers, tmp_path):
    with surroundings(tmp_path) as run:
        answers.write(dataclasses.replace(run, processes=Processes(1, 2, CPU)))
    assert not list(tmp_path.iterdir())
