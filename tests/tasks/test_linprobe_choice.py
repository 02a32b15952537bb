"""Training images of the linear probe, and its choice of a learning rate."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semaim.errors import UserError
from semaim.evaluation.accuracy import Predictions
from semaim.runs.context import Run
from semaim.tasks.linprobe import LinearProbe
from support.commands import journal, status
from support.in_process import go
from support.probing import PROBE, saved


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the training-set indices of all images that a probe is trained on."""
    seen: list[int] = []
    whole = LinearProbe.loss

    def watched(self: LinearProbe, batch: Any, state: Any, noise: Any) -> Tensor:
        seen.extend(batch.index_B.tolist())
        return whole(self, batch, state, noise)

    monkeypatch.setattr(LinearProbe, "loss", watched)
    return seen


def test_images_that_the_choice_is_made_on_are_not_trained_on(
    pretrained: Path, tmp_path: Path, trained_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[LinearProbe] = []
    whole = LinearProbe.run
    monkeypatch.setattr(LinearProbe, "run", lambda self, run: tasks.append(self) or whole(self, run))
    options = ("task.base_lrs=[0.1,0.3]", "trainer.batch_size=161", "trainer.max_steps=8", "run_name=sweep")
    go(tmp_path, *PROBE, *options, f"checkpoint={pretrained}")
    (task,) = tasks
    images: Any = task.training.images
    held: Any = task.selection_images
    train = {images.name(i) for i in trained_on}
    choice = {held.name(i) for i in range(len(held))}
    everything = {task.labelled.name(i) for i in range(1437)}
    assert len(trained_on) == len(train) == 8 * 161, "one epoch, each image once"
    assert not train & choice
    assert train | choice | {images.name(i) for i in range(len(images))} == everything
    assert len(images) + len(held) == 1437
    of_class = np.bincount([task.labelled.label(i) for i in range(1437)])
    held_of_class = np.bincount([held.label(i) for i in range(len(held))])
    assert held_of_class.tolist() == [round(0.1 * count) for count in of_class.tolist()]
    assert not {task.held_out.name(i) for i in range(360)} & everything


def test_without_a_choice_all_images_are_trained_on(pretrained: Path, tmp_path: Path, trained_on: list[int]) -> None:
    options = ("trainer.batch_size=479", "trainer.max_steps=3", "task.base_lrs=[0.3]", "run_name=one")
    folder = go(tmp_path, *PROBE, *options, f"checkpoint={pretrained}")
    assert sorted(trained_on) == list(range(1437))
    names = {f"linprobe_{kind}{metric}" for kind in ("cls", "mean") for metric in ("", "_top5", "_loss")}
    assert set(status(folder)["result"]) == names
    lrs = [line["metrics"]["train/lr"] for line in journal(folder) if "train/lr" in line.get("metrics", {})]
    assert lrs[0] == pytest.approx(0.1 * 479 / 256, rel=1e-12)
    groups = saved(folder)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([3 * lrs[-1]] * 4, rel=1e-12), "0.3 in place of 0.1"


def crafted(right: dict[str, dict[str, int]]) -> Callable[..., dict[str, Predictions]]:
    """Predictions with a given number of correct ones, by number of images and name of the head."""

    def answers(self: LinearProbe, images: Any, _: Run) -> dict[str, Predictions]:
        labels_M = torch.tensor([images.label(i) for i in range(len(images))])
        counts = right["choice" if images is self.selection_images else "test"]
        predicted = {name: torch.where(torch.arange(len(labels_M)) < counts[name], labels_M, (labels_M + 1) % 10)
                     for name in self.head_names}  # fmt: skip
        return {name: Predictions(predicted[name], labels_M, self.classes) for name in self.head_names}

    return answers


def test_the_choice_is_made_on_held_out_training_images(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best head on the held-out images is the worst on the test images; each feature has its own choice."""
    right = {
        "choice": {"cls_lr0.1": 50, "cls_lr0.3": 90, "cls_lr1": 70, "mean_lr0.1": 33, "mean_lr0.3": 22, "mean_lr1": 11},
        "test": {"cls_lr0.1": 300, "cls_lr0.3": 36, "cls_lr1": 330, "mean_lr0.1": 72, "mean_lr0.3": 360, "mean_lr1": 9},
    }
    monkeypatch.setattr(LinearProbe, "_predictions", crafted(right))
    options = ("task.base_lrs=[0.1,0.3,1.0]", "trainer.max_steps=1", "run_name=sweep")
    folder = go(tmp_path, *PROBE, *options, f"checkpoint={pretrained}")
    assert status(folder)["result"] == {
        "linprobe_cls": pytest.approx(10.0),
        "linprobe_cls_base_lr": 0.3,
        "linprobe_mean": pytest.approx(20.0),
        "linprobe_mean_base_lr": 0.1,
    }
    with open(folder / "confusion.csv") as file:
        rows = list(csv.reader(file))[1:]
    assert sum(int(row[1 + place]) for place, row in enumerate(rows)) == 36, "the table is of the chosen head"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    options = ("task.base_lrs=[1e-6,0.3]", "task.features=[mean]", "trainer.max_steps=20", "run_name=sweep")
    return go(tmp_path_factory.mktemp("sweep"), *PROBE, *options, f"checkpoint={pretrained}")


def test_a_sweep_of_learning_rates(sweep: Path) -> None:
    (accuracies,) = json.loads((sweep / "evaluations.json").read_text()).values()
    names = {f"{split}/mean_lr{lr}" for split in ("val", "holdout") for lr in ("1e-06", "0.3")}
    assert accuracies.keys() == {f"{name}{metric}" for name in names for metric in ("", "_top5", "_loss")}
    assert accuracies["holdout/mean_lr0.3"] > accuracies["holdout/mean_lr1e-06"] + 10, "one of them hardly moves"
    result = status(sweep)["result"]
    assert result == {
        "linprobe_mean": accuracies["val/mean_lr0.3"],
        "linprobe_mean_top5": accuracies["val/mean_lr0.3_top5"],
        "linprobe_mean_loss": accuracies["val/mean_lr0.3_loss"],
        "linprobe_mean_base_lr": 0.3,
    }
    assert status(sweep)["metric"] == "linprobe_mean"


def test_a_head_of_the_sweep_is_the_head_of_its_learning_rate(sweep: Path) -> None:
    """Learning rates in the checkpoint are those of the schedule times the rate of each head."""
    lr = next(
        line["metrics"]["train/lr"]
        for line in reversed(journal(sweep))
        if line.get("step") == 20 and "train/lr" in line.get("metrics", {})
    )
    groups = saved(sweep)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([lr * 1e-5] * 2 + [lr * 3] * 2, rel=1e-9)
    slow, fast = (saved(sweep)["model"][f"heads.{s}.bias"].abs().max() for s in (0, 1))
    assert fast > 0.01
    assert 0 < slow < 1e-4 * fast


def test_another_optimizer_that_would_train_all_heads_at_one_rate_is_refused(pretrained: Path, tmp_path: Path) -> None:
    options = (*PROBE, "optimizer=adamw", "task.base_lrs=[0.1,0.2]", "trainer.max_steps=1", "run_name=adamw")
    with pytest.raises(Exception, match=r"task\.base_lrs needs an optimizer with a group for each head") as raised:
        go(tmp_path, *options, f"checkpoint={pretrained}")
    assert isinstance(raised.value.__cause__, UserError)
    groups = "optimizer.groups._target_=semaim.models.heads.head_groups"
    folder = go(tmp_path, *options, groups, f"checkpoint={pretrained}")
    peak = 64 / 256
    lrs = {round(group["lr"] / peak, 9) for group in saved(folder)["optimizer"]["param_groups"]}
    assert lrs == {0.1, 0.2}
