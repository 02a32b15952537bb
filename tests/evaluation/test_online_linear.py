"""The linear classifier trained during pretraining: it learns, and pretraining is unaffected."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from semaim.core.distributed import Processes
from semaim.core.signals import StopRequest
from semaim.data.image_data import ImageData
from semaim.data.samples import read_images
from semaim.evaluation.evaluator import Learner
from semaim.evaluation.online_linear import OnlineLinear
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from support.commands import losses
from support.in_process import composed, run

SHORT = ("trainer.batch_size=128", "trainer.warmup_epochs=0", "trainer.max_steps=4")
METRICS = {f"online/linear_{kind}{name}" for kind in ("cls", "mean") for name in ("", "_top5", "_loss")}
BESIDE = ("evaluators=[linear]", "task.evaluators.linear.every_epochs=1")


def checkpoint(folder: Path) -> dict[str, Any]:
    newest = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    return torch.load(newest, weights_only=True)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    from hydra.utils import instantiate

    return instantiate(composed().data, _convert_="all")


class Shades(Learner):
    """In place of a model's features, two from which the class can be read: coarse pixels, on a large common offset."""

    def features(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        small_BD = torch.nn.functional.adaptive_avg_pool2d(images_BCHW[:, :1], 8).flatten(1)
        return {"cls": small_BD, "mean": 1000 + 0.001 * small_BD}


@pytest.fixture
def surroundings(tmp_path: Path) -> Run:
    stop = StopRequest()
    stop.restore()
    return Run(RunFolder(tmp_path), {}, Processes(0, 1, torch.device("cpu")), 0, stop, None)


def started(data: ImageData, width: int, run: Run) -> OnlineLinear:
    linear = OnlineLinear(every_epochs=None, base_lr=0.1, batch_size=64)
    linear.begin(SimpleNamespace(embed_dim=width), data, run)  # type: ignore[arg-type]
    return linear


def test_it_learns_the_classes(digits: ImageData, surroundings: Run) -> None:
    linear = started(digits, 64, surroundings)
    source = digits.splits.train
    _, images_BCHW = read_images(source, range(len(source)), digits.eval_transform)
    learner = Shades(None, {}, None, None, None, None, digits, 0, 1)  # type: ignore[arg-type]
    features = learner.features(images_BCHW)
    labels = torch.tensor([source.label(i) for i in range(len(source))])
    before = linear.evaluate(learner, surroundings)
    for _ in range(10):
        for rows in torch.arange(len(labels)).split(128):
            linear.learn({kind: values[rows] for kind, values in features.items()}, labels[rows])
    after = linear.evaluate(learner, surroundings)
    assert set(after) == METRICS
    for kind in ("online/linear_cls", "online/linear_mean"):
        assert before[kind] < 40
        assert after[kind] > 85, kind  # the offset, a million times the differences, is removed
        assert after[kind] < after[f"{kind}_top5"] <= 100
        assert after[f"{kind}_loss"] < 0.8 < before[f"{kind}_loss"]


def test_its_learning_rate_is_for_256_images(digits: ImageData, surroundings: Run) -> None:
    linear = started(digits, 5, surroundings)
    linear.learn({kind: torch.randn(64, 5) for kind in ("cls", "mean")}, torch.zeros(64, dtype=torch.long))
    assert [group["lr"] for group in linear.optimizer.param_groups] == [0.1 * 64 / 256]


def test_unlabelled_images_count_for_nothing(digits: ImageData, surroundings: Run) -> None:
    generator, labels = torch.Generator().manual_seed(0), torch.arange(8)
    features = {kind: torch.randn(8, 5, generator=generator) for kind in ("cls", "mean")}
    results = []
    for of_them in (labels, torch.full((8,), -1)):
        linear = started(digits, 5, surroundings)
        start = [p.clone() for p in linear.heads.parameters()]
        linear.learn(features, of_them)
        results.append([bool((p != q).any()) for p, q in zip(linear.heads.parameters(), start, strict=True)])
    assert results == [[True] * 4, [False] * 4]


def test_pretraining_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    for permutation in ("attention_center", "raster"):  # with and without a shared semantic pass
        without = run(tmp_path / permutation / "without", f"permutation={permutation}", *SHORT)
        beside = run(tmp_path / permutation / "with", f"permutation={permutation}", *SHORT, *BESIDE)
        assert losses(without) == losses(beside)
        one, other = checkpoint(without)["model"], checkpoint(beside)["model"]
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        assert checkpoint(without)["task"] == {"evaluators": {}}


def test_it_continues_to_the_last_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *SHORT, *BESIDE, "trainer.save_every_steps=1")
    for steps in (2, 4):
        parts = run(
            tmp_path / "parts", *SHORT, *BESIDE, "trainer.save_every_steps=1",
            f"trainer.max_steps={steps}",
        )  # fmt: skip
    one, other = (checkpoint(folder)["task"]["evaluators"]["linear"] for folder in (whole, parts))
    assert all(torch.equal(value, other["heads"][name]) for name, value in one["heads"].items())
    momentum = [state["momentum_buffer"] for state in one["optimizer"]["state"].values()]
    assert len(momentum) == 4
    assert all(
        torch.equal(value, state["momentum_buffer"])
        for value, state in zip(momentum, other["optimizer"]["state"].values(), strict=True)
    )


def test_its_accuracy_is_measured_after_epochs(tmp_path: Path) -> None:
    folder = run(tmp_path, "trainer.batch_size=718", "trainer.max_steps=4", *BESIDE)
    found = json.loads((folder / "evaluations.json").read_text())
    assert sorted(found) == ["2", "4"]
    for metrics in found.values():
        assert set(metrics) == METRICS
        assert all(0 <= value <= 100 for value in metrics.values())
    result = json.loads((folder / "status.json").read_text())["result"]
    assert result["online/linear_cls_after"] == found["4"]["online/linear_cls"]


def test_a_run_that_ends_within_its_first_epoch_is_measured(tmp_path: Path) -> None:
    folder = run(tmp_path, "trainer.batch_size=718", "trainer.max_steps=1", *BESIDE)
    assert sorted(json.loads((folder / "evaluations.json").read_text())) == ["1"]
    result = json.loads((folder / "status.json").read_text())["result"]
    assert set(result) == {"loss", *(f"{name}_after" for name in METRICS)}
