"""The k-NN evaluation as a task, and whole commands compared with scikit-learn."""

from __future__ import annotations

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from semaim.data.image_sets import Splits
from semaim.errors import UserError
from semaim.evaluation.features import Features
from semaim.evaluation.knn import check_ks, classify
from semaim.evaluation.online_knn import OnlineKNN
from semaim.models.vit import encode, vit_of
from semaim.tasks.evaluation import Evaluation, check_image_size
from semaim.tasks.knn import KNN
from support.commands import journal, together
from support.evaluating import ALONE, Source, image_data, noise
from support.in_process import go
from support.in_process import run as pretrain


@pytest.mark.parametrize("ks", [[], [0], [5, -1]])
def test_numbers_of_neighbours_are_positive(ks):
    with pytest.raises(UserError, match=r"must be positive numbers of neighbours"):
        check_ks(ks)
    with pytest.raises(UserError, match=r"must be positive numbers of neighbours"):
        OnlineKNN(1, ks, 8, None, None)
    assert check_ks((20, 1)) == [20, 1]


def test_predictions_for_each_feature_and_number_of_neighbours():
    """A bank of points in the plane. By x alone the query at (1, 5) is of class 1 or 0; the others are unambiguous."""

    def features(labels, x, y):
        return Features(
            {"cls": np.array(x, np.float32), "mean": np.array(y, np.float32)},
            torch.tensor(labels),
            torch.arange(len(labels)),
        )

    bank = features([0, 0, 1], [[1, 0], [0.9, 0.1], [0, 1]], [[0, 1], [1, 0.5], [1, 0]])
    queries = features([0, 1], [[5, 1], [0, 2]], [[3, 0], [4, 0.1]])
    found = classify(bank, queries, [1, 3], ["left", "right"], ALONE)
    assert list(found) == ["knn_1_cls", "knn_3_cls", "knn_1_mean", "knn_3_mean"]
    # cls: nearest are 0 (0.9, 0.1) and 1 (0, 1). mean: the nearest of both is 1 (1, 0).
    assert {name: answers.predicted_M.tolist() for name, answers in found.items()} == {
        "knn_1_cls": [0, 1],
        "knn_3_cls": [0, 1],
        "knn_1_mean": [1, 1],
        "knn_3_mean": [1, 1],
    }
    assert {name: answers.accuracy for name, answers in found.items()} == {
        "knn_1_cls": 100.0,
        "knn_3_cls": 100.0,
        "knn_1_mean": 50.0,
        "knn_3_mean": 50.0,
    }
    assert all(answers.classes == ["left", "right"] for answers in found.values())
    assert all(answers.labels_M.tolist() == [0, 1] for answers in found.values())


# The task


class Notes:
    """Records journal entries in memory."""

    def __init__(self):
        self.lines = []

    def log(self, step, metrics, of=None):
        self.lines.append((step, dict(metrics)))

    def tags(self, tags):
        self.lines.append(dict(tags))

    def artifact(self, name):
        self.lines.append(name)


def test_impossible_evaluations_are_refused_at_once(splits, tiny_model):
    data = image_data(splits)
    with pytest.raises(UserError, match=r"ks=\[3, 31\], but there are 30 labelled training images: lower task\.ks"):
        KNN(Source(vit_of(tiny_model(image_size=8))), data, [3, 31], 8, None, False)
    KNN(Source(vit_of(tiny_model(image_size=8))), data, [3, 30], 8, None, False)
    with pytest.raises(UserError, match=r"must be positive numbers of neighbours"):
        KNN(Source(vit_of(tiny_model(image_size=8))), data, [0], 8, None, False)
    wrong = vit_of(tiny_model(image_size=(8, 16)))
    with pytest.raises(UserError, match=r"checkpoint=somewhere is for images of 8x16, the data are of 8x8"):
        KNN(Source(wrong), data, [3], 8, None, False)
    check_image_size(vit_of(tiny_model(image_size=8)), data, "somewhere")


def test_the_task_reports_to_the_run(run, tiny_model, tmp_path):
    train, val = noise(40, seed=1), noise(35, seed=2)
    task = KNN(Source(vit_of(tiny_model(image_size=8)).eval()), image_data(Splits(train, train, val, ["a", "b", "c"])),
               [7, 1], 8, None, False)  # fmt: skip
    run.journal, run.choices = Notes(), {"task": "knn", "data": "digits", "model": "x"}
    run.folder.path.mkdir()
    result = task.run(run)
    assert task.metric == "knn_1_mean"  # without k=10, the smallest
    assert list(result) == ["knn_7_cls", "knn_1_cls", "knn_7_mean", "knn_1_mean"]
    rows = (run.folder.path / "confusion.csv").read_text().splitlines()[1:]
    confusion_CC = np.array([row.split(",")[1:] for row in rows], int)
    assert confusion_CC.sum(1).tolist() == [12, 12, 11]  # classes in turn
    assert 100 * confusion_CC.trace() / 35 == pytest.approx(result["knn_1_mean"], abs=1e-9)  # of the metric, no other
    assert len({round(value, 6) for value in result.values()}) == 4
    assert run.journal.lines == [
        {"pretrained.run": "x"},
        (12, {"pretrained/epochs": 2.0}),
        "per_class.csv",
        "confusion.csv",
        (12, {f"eval/{name}": value for name, value in result.items()}),
    ]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["confusion.csv", "per_class.csv"]


def test_features_of_one_encoder_are_not_used_for_another(run, splits, tiny_model, tmp_path):
    """Neither with other weights nor with the same weights and another number of heads (task.source.num_heads=4)."""
    run.folder.path.mkdir()
    images_BCHW = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    encoded, folders = [], []
    for changes in ({}, {}, {"seed": 1}, {"num_heads": 4}):
        vit = vit_of(tiny_model(image_size=8, **changes)).eval()
        KNN(Source(vit), image_data(splits), [1], 8, str(tmp_path / "features"), False).run(run)
        folders.append(len(list((tmp_path / "features").iterdir())))
        with torch.no_grad():
            encoded.append(encode(vit, images_BCHW)["mean"])
    assert torch.equal(encoded[0], encoded[1])
    assert all((encoded[0] - other).abs().max() > 1e-3 for other in encoded[2:])
    assert folders == [1, 1, 2, 3]  # the bank and the queries are the same images here


SPLIT = {"root": "r", "source": {"_target_": "t", "val_fraction": 0.2}, "val_fraction": None, "val_seed": 3}


@pytest.mark.parametrize(
    ("now", "warned"),
    [
        ({}, False),
        ({"image_size": 64}, False),
        ({"val_fraction": 0.1}, True),
        ({"val_seed": 4}, False),  # of no share
        ({"source": {"_target_": "t", "val_fraction": 0.5}}, True),
        ({"source": {"_target_": "other", "val_fraction": 0.5}}, False),  # other data: no held-out image was trained on
        ({"root": "other", "val_fraction": 0.1}, False),
    ],
)
def test_a_split_other_than_that_of_pretraining_is_warned_of(run, splits, caplog, monkeypatch, now, warned):
    """The encoder may have been trained on images that are held out now."""
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    run.config["data"] = SPLIT | now
    Evaluation(Source(None, SPLIT), image_data(splits)).begin(run)
    assert ("images held out now may have been seen" in caplog.text) == warned


def test_nothing_is_warned_of_an_encoder_of_unknown_origin(run, splits, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    Evaluation(Source(None, None), image_data(splits)).begin(run)
    assert not caplog.text


def test_the_mean_before_the_norm_is_the_feature_of_the_authors_global_pool(run, splits, tiny_model, tmp_path):
    """Their encoder by hand: no final norm, the mean of the patch tokens, and a LayerNorm at its initial values."""
    vit = vit_of(tiny_model(image_size=8)).eval()
    with torch.no_grad():  # the trained norm differs clearly from a new one
        vit.norm.weight += torch.linspace(0, 1, vit.embed_dim)
    images_BCHW = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patches_BLD = vit.patch_embed(images_BCHW) + vit.pos_embed[:, 1:]
    cls_B1D = (vit.cls_token + vit.pos_embed[:, :1]).expand(2, -1, -1)
    tokens_BND = vit.blocks(torch.cat([cls_B1D, patches_BLD], dim=1))
    expected_BD = torch.nn.LayerNorm(vit.embed_dim, eps=1e-6)(tokens_BND[:, 1:].mean(dim=1))
    found = encode(vit, images_BCHW, mean_before_norm=True)
    assert (found.pop("mean_before_norm") - expected_BD).abs().max() < 1e-5
    usual = encode(vit, images_BCHW)
    assert found.keys() == usual.keys() == {"cls", "mean"}
    assert all(torch.equal(found[kind], usual[kind]) for kind in usual)
    assert (usual["mean"] - expected_BD).abs().max() > 0.1

    run.folder.path.mkdir()
    cache = str(tmp_path / "features")
    without = KNN(Source(vit), image_data(splits), [3], 8, cache, False).run(run)
    task = KNN(Source(vit), image_data(splits), [3], 8, cache, True)
    assert task.metric == "knn_3_mean"
    result = task.run(run)
    assert {name: result[name] for name in without} == without
    assert result.keys() - without.keys() == {"knn_3_mean_before_norm"}


# Whole commands


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Two steps on digits; the run folder."""
    return pretrain(tmp_path_factory.mktemp("pretrained"), "trainer.max_steps=2")


def result(folder):
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["metric"]) == ("finished", "knn_10_mean")
    return status["result"]


@pytest.fixture(scope="module")
def evaluated(pretrained):
    """Run folder of its task=knn."""
    return go(pretrained.parent, "task=knn", f"checkpoint={pretrained}", "tracking=none", "run_name=knn")


def test_accuracies_are_those_of_scikit_learn(pretrained, evaluated, tmp_path):
    exported = go(tmp_path, "task=features", f"checkpoint={pretrained}", "tracking=none", "run_name=features")
    train, val = (np.load(exported / f"{part}.npz") for part in ("train", "val"))
    expected = {}
    for k in (10, 20, 30):
        for kind in ("cls", "mean"):
            theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
            theirs.fit(train[kind].astype(np.float64), train["labels"])
            votes = theirs.predict_proba(val[kind].astype(np.float64))
            of_label = votes[range(len(votes)), val["labels"]]
            before_it = (votes > of_label[:, None]).sum(1)
            for name, top in (("", 1), ("_top5", 5)):  # a class without a vote is not among the first
                expected[f"knn_{k}_{kind}{name}"] = 100 * ((before_it < top) & (of_label > 0)).mean()
    assert result(evaluated) == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 3
    assert all(40 < value < 98 for value in expected.values())
    (metrics,) = [line for line in journal(evaluated) if "eval/knn_10_cls" in line.get("metrics", {})]
    assert metrics["step"] == 2
    assert metrics["metrics"] == {f"eval/{name}": value for name, value in result(evaluated).items()}
    artifacts = [line["artifact"] for line in journal(evaluated) if "artifact" in line]
    assert sorted(artifacts) == ["confusion.csv", "per_class.csv"]


def test_a_parent_that_cannot_be_written_does_not_cost_the_result(pretrained, tmp_path, caplog):
    parent = tmp_path / "colleague"
    shutil.copytree(pretrained, parent)
    (parent / ".journal.lock").mkdir()  # cannot be opened for writing
    ends = Evaluation.end(
        SimpleNamespace(_measured=lambda _: None),
        SimpleNamespace(log=lambda *_: None, processes=ALONE, config={"parent_run": str(parent)}),
        SimpleNamespace(step=1),
        {"knn": 1.0},
    )
    assert ends == {"knn": 1.0}
    assert "colleague/.journal.lock cannot be written" in caplog.text


def test_a_second_knn_reads_the_features(pretrained, evaluated, monkeypatch):
    def none(*_):
        raise AssertionError("features are computed anew")

    monkeypatch.setattr("semaim.tasks.evaluation.encode", none)
    again = ("task=knn", f"checkpoint={pretrained}", "tracking=none", "run_name=other_ks", "task.ks=[10,1]")
    found = result(go(pretrained.parent, *again, "task.batch_size=100"))
    assert {name: found[name] for name in ("knn_10_cls", "knn_10_mean")} == {
        name: result(evaluated)[name] for name in ("knn_10_cls", "knn_10_mean")
    }
    assert len(list((pretrained.parent / ".features").iterdir())) == 2  # the bank and the queries
    with pytest.raises(AssertionError, match="computed anew"):
        go(pretrained.parent, *again, "run_name=none_kept", "task.features_dir=null")


@pytest.mark.slow
def test_two_processes_give_exactly_the_accuracies_of_one(pretrained, evaluated, tmp_path):
    together(tmp_path, "task=knn", f"checkpoint={pretrained}", "tracking=none", "run_name=knn")
    assert result(tmp_path / "runs" / "knn") == result(evaluated)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npy")}
        for folder in (pretrained.parent / ".features", tmp_path / "runs" / ".features")
    )
    assert len(one) == 8
    assert one == two
    for name in ("confusion.csv", "per_class.csv"):
        assert (tmp_path / "runs" / "knn" / name).read_bytes() == (evaluated / name).read_bytes()


def test_the_online_accuracy_is_that_of_the_task(evaluated, tmp_path):
    """The online accuracy after two steps, on all images; the task evaluates the stored checkpoint."""
    online = ("evaluators=[knn]", "task.evaluators.knn.ks=[10,30]")
    online += ("task.evaluators.knn.max_bank=null", "task.evaluators.knn.max_queries=null")
    folder = pretrain(tmp_path, "trainer.max_steps=2", *online)
    found = json.loads((folder / "evaluations.json").read_text())["2"]
    expected = {f"online/knn_{k}_{kind}": result(evaluated)[f"knn_{k}_{kind}"]
                for k in (10, 30) for kind in ("cls", "mean")}  # fmt: skip
    assert found == pytest.approx(expected, abs=0.6)  # the model and timm's model round differently: two images of 360
