"""The linear classifier trained during pretraining: it learns, and pretraining is unaffected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semaim.core.distributed import Processes
from semaim.core.signals import StopRequest
from semaim.data.image_data import ImageData
from semaim.evaluation.online_linear import OnlineLinear
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from support.commands import losses
from support.in_process import composed, run

SHORT = ("trainer.batch_size=128", "trainer.warmup_epochs=0", "trainer.max_steps=4", "task.knn_every_epochs=1")


def checkpoint(folder: Path) -> dict[str, Any]:
    newest = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    return torch.load(newest, weights_only=True)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    from hydra.utils import instantiate

    return instantiate(composed().data, _convert_="all")


def shades(images_BCHW: Tensor) -> Tensor:
    """Tokens (B, 2, D) from which the class can be read: coarse pixels, on a large common offset."""
    small_BD = torch.nn.functional.adaptive_avg_pool2d(images_BCHW[:, :1], 8).flatten(1)
    return torch.stack([small_BD, 1000 + 0.001 * small_BD], dim=1)


def test_it_learns_the_classes(digits: ImageData, tmp_path: Path) -> None:
    linear = OnlineLinear(64, digits, lr=0.1, batch_size=64)
    linear.begin(Processes(0, 1, torch.device("cpu")))
    stop = StopRequest()
    stop.restore()
    surroundings = Run(RunFolder(tmp_path), {}, Processes(0, 1, torch.device("cpu")), 0, stop, None)
    source, images = digits.splits.train, digits.evaluation(digits.splits.train, list(range(len(digits.splits.train))))
    tokens = shades(torch.stack([images[i][0] for i in range(len(images))]))
    labels = torch.tensor([source.label(i) for i in range(len(images))])
    before = linear.accuracy(shades, surroundings)
    for _ in range(10):
        for rows in torch.arange(len(labels)).split(128):
            linear.learn(tokens[rows], labels[rows])
    after = linear.accuracy(shades, surroundings)
    assert set(after) == {"linear_cls", "linear_mean"}
    for kind, value in after.items():
        assert before[kind] < 40
        assert value > 85, kind  # the offset, a million times the differences, is removed


def test_unlabelled_images_count_for_nothing(digits: ImageData) -> None:
    tokens, labels = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    results = []
    for rows, of_them in ((slice(0, 8), labels), (slice(0, 8), torch.full((8,), -1))):
        torch.manual_seed(1)
        linear = OnlineLinear(5, digits, lr=0.1, batch_size=64)
        linear.begin(Processes(0, 1, torch.device("cpu")))
        start = [p.clone() for p in linear.heads.parameters()]
        linear.learn(tokens[rows], of_them)
        results.append([bool((p != q).any()) for p, q in zip(linear.heads.parameters(), start, strict=True)])
    assert results == [[True] * 4, [False] * 4]


def test_pretraining_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    for permutation in ("attention_center", "raster"):  # with and without a shared semantic pass
        without = run(tmp_path / permutation / "without", f"permutation={permutation}", *SHORT)
        beside = run(tmp_path / permutation / "with", f"permutation={permutation}", *SHORT, "task.online_linear_lr=0.1")
        assert losses(without) == losses(beside)
        one, other = checkpoint(without)["model"], checkpoint(beside)["model"]
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        assert checkpoint(without)["task"] == {}


def test_it_continues_to_the_last_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *SHORT, "task.online_linear_lr=0.1", "trainer.save_every_steps=1")
    for steps in (2, 4):
        parts = run(
            tmp_path / "parts", *SHORT, "task.online_linear_lr=0.1", "trainer.save_every_steps=1",
            f"trainer.max_steps={steps}",
        )  # fmt: skip
    one, other = (checkpoint(folder)["task"]["online_linear"] for folder in (whole, parts))
    assert all(torch.equal(value, other["heads"][name]) for name, value in one["heads"].items())
    momentum = [state["momentum_buffer"] for state in one["optimizer"]["state"].values()]
    assert len(momentum) == 4
    assert all(
        torch.equal(value, state["momentum_buffer"])
        for value, state in zip(momentum, other["optimizer"]["state"].values(), strict=True)
    )


def test_its_accuracy_is_measured_after_epochs(tmp_path: Path) -> None:
    folder = run(tmp_path, "trainer.batch_size=718", "trainer.max_steps=4", "task.knn_every_epochs=1",
                 "task.online_linear_lr=0.1")  # fmt: skip
    found = json.loads((folder / "evaluations.json").read_text())
    assert sorted(found) == ["2", "4"]
    for metrics in found.values():
        assert set(metrics) == {"online/linear_cls", "online/linear_mean"}
        assert all(0 <= value <= 100 for value in metrics.values())
    result = json.loads((folder / "status.json").read_text())["result"]
    assert result["online/linear_cls_after"] == found["4"]["online/linear_cls"]
