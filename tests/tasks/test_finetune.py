"""Fine-tuning: the initial model, the files of a run, the best checkpoint, and repeated evaluations."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semaim.checkpoints import store
from semaim.errors import UserError
from semaim.evaluation.accuracy import Predictions
from semaim.tasks.finetune import FineTuning
from support.commands import journal, losses, measured, status
from support.evaluating import assert_same_bits
from support.in_process import go, run
from support.tuning import TUNE, task

# One pretrained encoder of 16 patches for the whole file.
ENCODER = ("data.patch_size=8", "trainer.max_steps=2", "trainer.ema=true", "trainer.ema_decay=[0.5,0.5]")
# Four epochs of two steps, with drop path, mixing and a moving average, so that random state matters; no warm-up.
EPOCHS = (
    "run_name=tuned",
    "trainer.batch_size=718",
    "trainer.epochs=4",
    "trainer.warmup_epochs=0",
    "trainer.keep_checkpoints=9",
    "trainer.ema=true",
    "trainer.ema_decay=[0.9,0.9]",
    "optimizer.base_lr=2e-3",
    "task.drop_path=0.2",
    "task.train_transform.rand_augment=null",
)
SHORT = ("trainer.max_steps=2", "trainer.batch_size=16", "run_name=short")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("pretrained"), *ENCODER)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Run folder of a fine-tuning of four epochs; the test lowers the accuracy of all epochs but the second."""
    whole, measured = FineTuning._predictions, []

    def best_at_the_second(self: FineTuning, model: Any, run: Any) -> Predictions:
        answers = whole(self, model, run)
        measured.append(model is self.model)
        if sum(measured) == 2:
            return answers
        worse_M = answers.predicted_M.clone()
        worse_M[:180] = (answers.labels_M[:180] + 1) % 10  # half of the predictions are wrong
        return replace(answers, predicted_M=worse_M)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "_predictions", best_at_the_second)
        return go(tmp_path_factory.mktemp("tuned"), *TUNE, *EPOCHS, f"checkpoint={pretrained}")


def evaluations(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "evaluations.json").read_text())


def saved(folder: Path, step: int | None = None) -> dict[str, Any]:
    """The newest checkpoint of a run, or that of a step."""
    name = f"step_{step:08d}.pt" if step else max(path.name for path in (folder / "checkpoints").glob("*.pt"))
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def evaluate(folder: Path, given: Path | str, *overrides: str) -> float:
    """Accuracy of a fine-tuned checkpoint from a separate evaluation."""
    return evaluated(folder, given, *overrides)["finetune"]


def evaluated(folder: Path, given: Path | str, *overrides: str) -> dict[str, float]:
    """Result of a separate evaluation of a fine-tuned checkpoint."""
    name = f"run_name=evaluation_{abs(hash((str(given), overrides)))}"
    asked = (*TUNE, name, "task.eval_only=true", f"checkpoint={given}", *overrides)
    return status(go(folder, *asked))["result"]


def test_the_encoder_is_the_pretrained_one_with_a_new_head(pretrained: Path) -> None:
    tuning, own = task(pretrained, "task.drop_path=0.2"), saved(pretrained)["model"]
    new = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    for name, value in tuning.model.state_dict().items():
        assert name in new or torch.equal(value, own[name]), name
    head: Any = tuning.model.head
    assert head.weight.shape == (10, 32)
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert not head.bias.any()
    assert tuning.model.blocks[-1].drop_path2.drop_prob == pytest.approx(0.2)


def test_the_first_loss_is_that_of_uniform_predictions(tuned: Path) -> None:
    assert losses(tuned)[1] == pytest.approx(math.log(10), abs=1e-3)
    assert losses(tuned)[8] < losses(tuned)[1] - 0.02


def test_files_and_metrics_of_a_run(tuned: Path) -> None:
    found = evaluations(tuned)
    assert list(found) == ["2", "4", "6", "8"]
    names = {f"val/{name}{ema}" for name in ("accuracy", "top5", "loss") for ema in ("", "_ema")}
    assert all(each.keys() == names for each in found.values())
    result = status(tuned)["result"]
    assert result == {
        "finetune": found["8"]["val/accuracy"],
        "finetune_top5": found["8"]["val/top5"],
        "finetune_loss": found["8"]["val/loss"],
        "finetune_ema": found["8"]["val/accuracy_ema"],
        "finetune_best": found["4"]["val/accuracy"],
    }
    assert result["finetune_best"] > max(found[step]["val/accuracy"] for step in ("2", "6", "8"))
    assert status(tuned)["metric"] == "finetune"
    assert sorted(path.name for path in (tuned / "checkpoints").glob("*.pt")) == [
        f"step_{step:08d}.pt" for step in (2, 4, 6, 8)
    ]
    # The untrained head predicts all classes equally; mixed and smoothed labels would keep the loss higher.
    assert math.log(10) > found["2"]["val/loss"] > found["8"]["val/loss"]
    assert 50 < found["8"]["val/top5"] < 100
    in_journal = {line["step"]: line["metrics"] for line in measured(tuned) if "val/accuracy" in str(line)}
    assert {str(step): metrics for step, metrics in in_journal.items()} == found
    counts = np.loadtxt(tuned / "confusion.csv", delimiter=",", skiprows=1, usecols=range(1, 11))
    assert counts.sum() == 360
    assert 100 * counts.trace() / 360 == pytest.approx(result["finetune"], rel=1e-12)
    assert (tuned / "per_class.csv").read_text().count("\n") == 11


def test_the_learning_rates_fall_from_the_head_to_the_patches(tuned: Path) -> None:
    last = [line["metrics"]["train/lr"] for line in journal(tuned) if "train/lr" in line.get("metrics", {})][-1]
    peak = 2e-3 * 718 / 256
    assert last == pytest.approx(1e-6 + (peak - 1e-6) * 0.5 * (1 + math.cos(math.pi * 7 / 8)), rel=1e-9)
    scales = sorted({group["lr"] / last for group in saved(tuned)["optimizer"]["param_groups"]})
    assert scales == pytest.approx([0.65**k for k in (5, 4, 3, 2, 1, 0)], rel=1e-9)  # four blocks


def test_the_best_of_the_evaluated_epochs_is_kept(tuned: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (tuned / "best").iterdir()) == ["step_00000004.pt", "step_00000004.pt.sha256"]
    best = store.newest(tuned / "best")
    assert best is not None
    assert_same_bits(best["model"], saved(tuned, 4)["model"])
    accuracy = evaluate(tmp_path, tuned / "best")
    assert accuracy == evaluations(tuned)["4"]["val/accuracy"] == status(tuned)["result"]["finetune_best"]


def test_a_separate_evaluation_repeats_the_last_one(tmp_path: Path, pretrained: Path) -> None:
    folder = go(tmp_path, *TUNE, *EPOCHS, "trainer.max_steps=4", f"checkpoint={pretrained}")
    result = status(folder)["result"]
    again, averaged = evaluated(tmp_path, folder), evaluate(tmp_path, folder, "task.source.ema=true")
    accuracy = again["finetune"]
    assert again == {name: result[name] for name in ("finetune", "finetune_top5", "finetune_loss")}
    assert averaged == result["finetune_ema"]
    assert accuracy != averaged, "the average lags behind, so that a mix-up shows"
    of_step_two = evaluate(tmp_path, folder / "checkpoints" / "step_00000002.pt")
    assert of_step_two == evaluations(folder)["2"]["val/accuracy"]
    (alone,) = (path for path in tmp_path.iterdir() if path.name == f"evaluation_{abs(hash((str(folder), ())))}")
    assert (alone / "confusion.csv").read_text() == (folder / "confusion.csv").read_text()
    assert not (alone / "checkpoints").exists(), "nothing was trained"


def test_only_scheduled_epochs_and_the_last_are_evaluated(pretrained: Path, tmp_path: Path) -> None:
    options = (*TUNE, *EPOCHS, "task.evaluate_every_epochs=2", "trainer.max_steps=5", "trainer.ema=false")
    folder = go(tmp_path, *options, f"checkpoint={pretrained}")
    assert list(evaluations(folder)) == ["4", "5"]
    names = {"finetune", "finetune_top5", "finetune_loss", "finetune_best"}
    assert set(status(folder)["result"]) == names, "no average, no accuracy of one"


def test_an_interruption_changes_no_bit(pretrained: Path, tmp_path: Path) -> None:
    options = (*TUNE, *SHORT, "task.drop_path=0.2", "trainer.ema=true", f"checkpoint={pretrained}")
    whole = go(tmp_path / "whole", *options)
    half = go(tmp_path / "half", *options, "trainer.max_steps=1")
    assert saved(half)["step"] == 1
    go(tmp_path / "half", *options)
    one, other = saved(half, 2), saved(whole, 2)
    for part in ("architecture", "model", "ema", "optimizer", "rng", "step", "loss", "task"):
        assert_same_bits(one[part], other[part], part)
    assert losses(half) == losses(whole)
    assert status(half)["result"]["finetune"] == status(whole)["result"]["finetune"]
    other_seed = go(tmp_path / "other", *options, "seed=1")
    assert losses(other_seed)[2] != losses(whole)[2]


def test_micro_batches_see_the_same_images(pretrained: Path, tmp_path: Path) -> None:
    """Without mixing (which is drawn for each micro-batch) and drop path, two micro-batches are one batch."""
    plain = ("task.mixup=0.0", "task.cutmix=0.0", "task.drop_path=0.0", "trainer.warmup_epochs=0")
    one, two = (
        go(tmp_path / f"{n}", *TUNE, *SHORT, *plain, f"trainer.accumulate={n}", f"checkpoint={pretrained}")
        for n in (1, 2)
    )
    for name, value in saved(one)["model"].items():
        # AdamW turns a gradient as small as rounding errors into a step as large as the learning rate.
        assert torch.allclose(saved(two)["model"][name], value, rtol=0, atol=1e-4), name
    assert losses(two)[2] == pytest.approx(losses(one)[2], rel=1e-5)


def test_neighbours_of_a_fine_tuned_run(tuned: Path, pretrained: Path, tmp_path: Path) -> None:
    common = ("tracking=none", "data.patch_size=8", "task=knn", "task.ks=[10]", "task.features_dir=null")
    after, best, before = (
        status(go(tmp_path, *common, f"run_name={name}", f"checkpoint={given}"))["result"]
        for name, given in (("after", tuned), ("best", tuned / "best"), ("before", pretrained))
    )
    assert set(after) == {f"knn_10_{kind}{top}" for kind in ("cls", "mean") for top in ("", "_top5")}
    assert after["knn_10_mean"] > 20, "far above chance"
    assert len({tuple(each.values()) for each in (after, best, before)}) == 3, "each has weights of its own"


def test_a_better_best_is_measured_anew(pretrained: Path, tmp_path: Path) -> None:
    options = (*TUNE, *EPOCHS, f"checkpoint={pretrained}")
    alone = (*TUNE, "run_name=alone", "task.eval_only=true", f"checkpoint={tmp_path / 'tuned' / 'best'}")
    go(tmp_path, *options, "trainer.max_steps=1")
    before = status(go(tmp_path, *alone))["result"]["finetune"]
    result = status(go(tmp_path, *options, "trainer.max_steps=4"))["result"]
    assert result["finetune_best"] > before
    assert status(go(tmp_path, *alone))["result"]["finetune"] == result["finetune_best"]


def test_a_changed_checkpoint_under_the_same_name_is_refused(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    options = (*TUNE, *SHORT, f"checkpoint={tmp_path / 'run'}")
    go(tmp_path, *options, "trainer.max_steps=1")
    run(tmp_path, *ENCODER, "trainer.max_steps=4")  # two more steps of pretraining
    with pytest.raises(UserError, match=r"checkpoint=.*/run has changed since this run began.*run_name="):
        go(tmp_path, *options)


def test_an_evaluation_needs_a_trained_head(pretrained: Path, tmp_path: Path) -> None:
    for given in (pretrained, "random", "timm:vit_tiny_patch16_224"):
        with pytest.raises(Exception, match=r"has no trained head.*task\.eval_only=false") as raised:
            evaluate(tmp_path, given)
        assert isinstance(raised.value.__cause__, UserError)
    assert not list(tmp_path.iterdir())


def test_data_with_another_number_of_classes_are_refused(tuned: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / split / name / "1.png")
    data = ("data=folder", f"data.root={tmp_path / 'data'}", "data.image_size=32")
    with pytest.raises(Exception, match=r"was fine-tuned for 10 classes, the data have 2: .*data=") as raised:
        evaluate(tmp_path, tuned, *data)
    assert isinstance(raised.value.__cause__, UserError)


def test_a_fine_tuned_run_is_not_fine_tuned_again(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"is fine-tuned already: task\.eval_only=true evaluates it") as raised:
        go(tmp_path, *TUNE, *SHORT, f"checkpoint={tuned}")
    assert isinstance(raised.value.__cause__, UserError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("task.pool=max",), r"task\.pool=max: task\.pool must be mean or cls"),
        (("data.image_size=64",), r"is for images of 32x32, the data are of 64x64"),
        (("trainer.batch_size=1438",), r"trainer\.batch_size=1438"),
    ],
)
def test_impossible_options(pretrained: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        go(tmp_path, *TUNE, "run_name=refused", f"checkpoint={pretrained}", *options)
    assert isinstance(raised.value, UserError) or isinstance(raised.value.__cause__, UserError)
    assert not (tmp_path / "refused").exists(), "nothing is written"
