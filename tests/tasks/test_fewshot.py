"""Few-shot accuracy, compared with scikit-learn on the same images."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from semaim.data.sources import digits
from semaim.errors import Interrupted, UserError
from semaim.evaluation.feature_cache import CHECKSUMS, _checksums
from semaim.evaluation.features import Features
from semaim.models.vit import encode
from semaim.tasks import fewshot
from semaim.tasks.fewshot import logistic_regression, rows_of
from support.commands import journal, status, together
from support.in_process import composed, go, run
from support.probing import ENCODER

SHOTS = (
    "tracking=none",
    "data.patch_size=8",
    "task=fewshot",
    "task.shots=[1,3]",
    "task.repeats=3",
    "task.ks=[1,3]",
    "task.features_dir=null",
    "run_name=few",
)


class Few(NamedTuple):
    """A run, and its six random draws: the images per class, and the images."""

    folder: Path
    chosen: list[tuple[int, list[int]]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Few:
    choose, chosen = fewshot.few_shot_indices, []

    def choosing(images: Any, shots: int, seed: int) -> list[int]:
        chosen.append((shots, choose(images, shots, seed)))
        return chosen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fewshot, "few_shot_indices", choosing)
        folder = go(tmp_path_factory.mktemp("few"), *SHOTS, f"checkpoint={pretrained}")
    return Few(folder, chosen[2:])  # the check before the run that there are enough images


@pytest.fixture(scope="module")
def features(pretrained: Path) -> dict[str, tuple[dict[str, Tensor], np.ndarray[Any, Any]]]:
    """Features and labels of all digits: the encoder on images normalised by this test."""
    source = composed(*SHOTS, f"checkpoint={pretrained}", "runs_dir=x").task.source
    vit, found = instantiate(source, _convert_="all").encoder(), {}
    for name, images in (("train", digits().train), ("val", digits().val)):
        pixels = torch.from_numpy(np.stack([np.asarray(images.read(i)) for i in range(len(images))]))
        with torch.no_grad():
            by_kind = encode(vit, (pixels.permute(0, 3, 1, 2) / 255 - 0.3) / 0.36)
        found[name] = by_kind, np.array([images.label(i) for i in range(len(images))])
    return found


# Features of some images


def five() -> Features:
    """Features of the five readable images of a set; the sixth is unreadable."""
    by_kind = {"cls": np.arange(10.0).reshape(5, 2), "mean": 100 + np.arange(10.0).reshape(5, 2)}
    return Features(by_kind, torch.tensor([0, 1, 0, 2, 1]), torch.tensor([3, 7, 8, 20, 21]))


def test_rows_of_a_set_of_features() -> None:
    found = rows_of(five(), [21, 9, 3, 8])  # the ninth is unreadable
    assert found.index_M.tolist() == [3, 8, 21]
    assert found.labels_M.tolist() == [0, 0, 1]
    assert found.by_kind["cls"].tolist() == [[0, 1], [4, 5], [8, 9]]
    assert found.by_kind["mean"].tolist() == [[100, 101], [104, 105], [108, 109]]


# Which images


def test_so_many_images_of_each_class(few: Few, features: Any) -> None:
    chosen, (_, labels) = few.chosen, features["train"]
    assert [shots for shots, _ in chosen] == [1, 1, 1, 3, 3, 3]
    for shots, indices in chosen:
        assert np.bincount(labels[indices]).tolist() == [shots] * 10
        assert len(set(indices)) == 10 * shots
    assert len({tuple(indices) for _, indices in chosen}) == 6, "another choice at every repeat"
    for one, three in zip(chosen[:3], chosen[3:], strict=True):
        assert set(one[1]) < set(three[1]), "more images of each class go on from the same choice"


# The numbers


def test_names_of_the_results(few: Few) -> None:
    folder = few.folder
    expected = {f"knn_1_{kind}_{shots}shot" for kind in ("cls", "mean") for shots in (1, 3)}
    expected |= {f"knn_3_{kind}_3shot" for kind in ("cls", "mean")}  # one image has no three neighbours
    expected |= {f"linprobe_{kind}_{shots}shot" for kind in ("cls", "mean") for shots in (1, 3)}
    result = status(folder)["result"]
    assert set(result) == expected | {f"{name}_std" for name in expected}
    assert status(folder)["metric"] == "linprobe_mean_3shot"
    in_journal = [line["metrics"] for line in journal(folder) if any("eval/" in key for key in line.get("metrics", ()))]
    assert in_journal == [{f"eval/{name}": value for name, value in result.items()}]
    assert not list(Path(folder).parent.glob(".features")), "features_dir=null keeps nothing"


@pytest.mark.parametrize("kind", ["cls", "mean"])
@pytest.mark.parametrize("shots", [1, 3])
def test_nearest_neighbour_by_scikit_learn(few: Few, features: Any, kind: str, shots: int) -> None:
    """Mean and deviation, computed from the accuracies of the single draws."""
    (train, labels), (val, val_labels) = features["train"], features["val"]
    accuracies = []
    for indices in (indices for count, indices in few.chosen if count == shots):
        model = KNeighborsClassifier(1, metric="cosine").fit(train[kind][indices].double().numpy(), labels[indices])
        accuracies.append(100 * (model.predict(val[kind].double().numpy()) == val_labels).mean())
    mean = sum(accuracies) / 3
    deviation = (sum((accuracy - mean) ** 2 for accuracy in accuracies) / 2) ** 0.5
    result = status(few.folder)["result"]
    assert deviation > 0.1
    # Features computed in other batches round differently: the prediction of one image of 360 may change.
    assert result[f"knn_1_{kind}_{shots}shot"] == pytest.approx(mean, abs=0.1)
    assert result[f"knn_1_{kind}_{shots}shot_std"] == pytest.approx(deviation, abs=0.3)


def test_the_linear_classifier(few: Few, features: Any) -> None:
    """Mean and deviation over the draws, as for k-NN, of scikit-learn's fit with C=1 on standardised features."""
    (train, labels), (val, val_labels) = features["train"], features["val"]
    result = status(few.folder)["result"]
    for kind in ("cls", "mean"):
        for shots in (1, 3):
            accuracies = []
            for indices in (indices for count, indices in few.chosen if count == shots):
                x_MD, queries_QD = train[kind][indices].double().numpy(), val[kind].double().numpy()
                mean_D, std_D = x_MD.mean(0), x_MD.std(0)
                model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit((x_MD - mean_D) / std_D, labels[indices])
                accuracies.append(100 * (model.predict((queries_QD - mean_D) / std_D) == val_labels).mean())
            name = f"linprobe_{kind}_{shots}shot"
            assert result[name] == pytest.approx(statistics.mean(accuracies), abs=0.1), name
            assert result[f"{name}_std"] == pytest.approx(statistics.stdev(accuracies), abs=0.3), name
    assert result["linprobe_mean_3shot"] > 20, "far above chance"


def test_the_strength_of_the_penalty_is_an_option(few: Few, pretrained: Path, tmp_path: Path) -> None:
    weak = status(few.folder)["result"]
    strong = status(go(tmp_path, *SHOTS, "task.C=1e-3", f"checkpoint={pretrained}"))["result"]
    assert strong["knn_1_mean_3shot"] == weak["knn_1_mean_3shot"]
    assert strong["linprobe_mean_3shot"] != weak["linprobe_mean_3shot"]


def test_several_processes_give_the_same_numbers(few: Few, pretrained: Path, tmp_path: Path) -> None:
    together(tmp_path, *SHOTS, f"checkpoint={pretrained}")
    assert status(tmp_path / "runs" / "few")["result"] == status(few.folder)["result"]


def test_the_same_seed_gives_the_same_numbers(few: Few, pretrained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # the random state before does not matter
    again = go(tmp_path, *SHOTS, f"checkpoint={pretrained}")
    assert status(again)["result"] == status(few.folder)["result"]
    other = go(tmp_path, *SHOTS, "seed=1", "run_name=other", f"checkpoint={pretrained}")
    assert status(other)["result"] != status(few.folder)["result"]


def test_an_interrupted_run_ends_with_the_same_numbers(
    few: Few, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, fits = logistic_regression, []

    def stopped(*args: Any) -> Any:
        fits.append(args)
        if len(fits) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(fewshot, "logistic_regression", stopped)
        with pytest.raises(Interrupted, match="stopped by SIGTERM during an evaluation"):
            go(tmp_path, *SHOTS, f"checkpoint={pretrained}")
    assert len(fits) == 4, "of 6: the current fit is the last"
    assert status(tmp_path / "few")["state"] == "interrupted"
    folder = go(tmp_path, *SHOTS, f"checkpoint={pretrained}")
    assert status(folder)["result"] == status(few.folder)["result"]


def test_a_run_folder_holds_no_others(few: Few) -> None:
    assert not [path for path in few.folder.rglob("*") if path.is_dir()]


def test_one_choice_has_no_deviation(pretrained: Path, tmp_path: Path) -> None:
    folder = go(tmp_path, *SHOTS, "task.repeats=1", "task.shots=[2]", "task.ks=[5]", f"checkpoint={pretrained}")
    result = status(folder)["result"]
    assert set(result) == {"linprobe_cls_2shot", "linprobe_mean_2shot"}, "nor five neighbours among two of each class"


def test_a_number_of_shots_does_not_depend_on_the_others(few: Few, pretrained: Path, tmp_path: Path) -> None:
    folder = go(tmp_path, *SHOTS, "task.shots=[3]", f"checkpoint={pretrained}")
    of_three = {key: value for key, value in status(few.folder)["result"].items() if "3shot" in key}
    assert status(folder)["result"] == of_three


def test_features_are_computed_once(few: Few, pretrained: Path, tmp_path: Path) -> None:
    """Cached features give the same numbers, and the second run reads them."""
    options = (*SHOTS, f"task.features_dir={tmp_path / 'kept'}", f"checkpoint={pretrained}")
    first = go(tmp_path, *options)
    assert status(first)["result"] == status(few.folder)["result"]
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 2, "the chosen images, and those held out"
    rows = sorted(len(np.load(folder / "mean.npy")) for folder in kept)
    assert rows == sorted([360, len({index for _, indices in few.chosen for index in indices})])
    for folder in kept:  # with these features all images are equal, so every prediction is the same class
        np.save(folder / "mean.npy", np.ones_like(np.load(folder / "mean.npy")))
        (folder / CHECKSUMS).write_text(_checksums(folder))
    second = go(tmp_path, *options, "run_name=second")
    assert status(second)["result"]["knn_1_mean_1shot"] == pytest.approx(10, abs=0.3)
    assert status(second)["result"]["knn_1_cls_1shot"] == status(first)["result"]["knn_1_cls_1shot"]


def test_an_encoder_trained_further_is_evaluated_again(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    options = (*SHOTS, "task.repeats=1", "task.shots=[3]", f"checkpoint={tmp_path / 'run'}")
    before = status(go(tmp_path, *options))["result"]
    run(tmp_path, *ENCODER, "trainer.max_steps=40")
    after = status(go(tmp_path, *options))["result"]
    assert after["linprobe_mean_3shot"] != before["linprobe_mean_3shot"]
    assert after == status(go(tmp_path, *options, "run_name=fresh"))["result"]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("task.shots=[1,200]",), r"200 images per class requested, but class \d has 1\d\d: lower task\.shots"),
        (("task.shots=[0,1]",), r"task\.shots=\[0,1\]: task\.shots must be a list of whole numbers above 0"),
        (("data.image_size=64",), r"is for images of 32x32, the data are of 64x64"),
    ],
)
def test_impossible_options(pretrained: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        go(tmp_path, *SHOTS, f"checkpoint={pretrained}", *options)
    assert isinstance(raised.value, UserError) or isinstance(raised.value.__cause__, UserError)
    assert not (tmp_path / "few").exists(), "nothing is written"
