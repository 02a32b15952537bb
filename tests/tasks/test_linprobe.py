"""The linear probe: the files of a run, and an unchanged encoder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor

from semaim.checkpoints.encoder_source import fingerprint
from semaim.data.sources import digits
from semaim.errors import UserError
from semaim.models.heads import LinearHeads
from semaim.models.vit import encode
from semaim.runs.context import Run
from semaim.tasks.linprobe import LinearProbe
from support.commands import status
from support.evaluating import assert_same_bits
from support.in_process import go, run
from support.probing import ENCODER, PROBE, SIX, measured, probe, saved


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Run folder of a probe of six steps."""
    return go(tmp_path_factory.mktemp("probed"), *PROBE, *SIX, f"checkpoint={pretrained}")


def test_files_and_metrics_of_a_run(probed: Path) -> None:
    result = status(probed)["result"]
    assert set(result) == {f"linprobe_{kind}{name}" for kind in ("cls", "mean") for name in ("", "_top5", "_loss")}
    assert status(probed)["metric"] == "linprobe_cls"
    evaluations = json.loads((probed / "evaluations.json").read_text())
    assert evaluations == {"6": {name.replace("linprobe_", "val/"): value for name, value in result.items()}}
    with open(probed / "confusion.csv") as file:
        header, *rows = csv.reader(file)
    assert header == ["true \\ predicted", *map(str, range(10))]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert counts.sum() == 360
    assert 100 * counts.trace() / 360 == pytest.approx(result["linprobe_cls"], rel=1e-12)
    with open(probed / "per_class.csv") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["images"]) for line in lines] == counts.sum(1).tolist()
    for line, right, images in zip(lines, counts.diagonal(), counts.sum(1), strict=True):
        assert float(line["accuracy"]) == pytest.approx(100 * right / images, abs=1e-4)


def test_accuracies_and_loss_are_those_of_the_saved_heads(pretrained: Path, probed: Path) -> None:
    """Computed again from the checkpoint, the encoder and the digits, normalised by this test."""
    vit, val = probe(pretrained).vit, digits().val
    assert val is not None
    images_NCHW = torch.from_numpy(np.stack([np.asarray(val.read(i)) for i in range(360)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        by_kind = encode(vit, (images_NCHW / 255 - 0.3) / 0.36)
    heads = LinearHeads(32, 10, 2, [1.0])
    heads.load_state_dict(saved(probed)["model"])
    with torch.no_grad():
        logits_SMC = heads.eval()(torch.stack([by_kind["cls"], by_kind["mean"]]))
    labels_M = torch.tensor([val.label(i) for i in range(360)])
    for s, kind in enumerate(("cls", "mean")):
        result, probability_MC = status(probed)["result"], logits_SMC[s].softmax(1).numpy()
        top1, top5 = (100 * top_k_accuracy_score(labels_M, probability_MC, k=k) for k in (1, 5))
        # One prediction may differ, since batches of another size round differently.
        assert top1 == pytest.approx(result[f"linprobe_{kind}"], abs=100 / 360 + 1e-9), kind
        assert top5 == pytest.approx(result[f"linprobe_{kind}_top5"], abs=100 / 360 + 1e-9), kind
        assert log_loss(labels_M, probability_MC) == pytest.approx(result[f"linprobe_{kind}_loss"], rel=1e-5), kind
        assert top1 < top5 < 100


def test_the_encoder_does_not_change(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, seen = [], []
    whole, read = LinearProbe.run, LinearProbe._read

    def watched(self: LinearProbe, run: Run) -> dict[str, float]:
        tasks.append((self, {name: value.clone() for name, value in self.vit.state_dict().items()}))
        return whole(self, run)

    def reading(self: LinearProbe, images_BCHW: Tensor) -> Tensor:
        features_KBD = read(self, images_BCHW)
        seen.append((any(m.training for m in self.vit.modules()), features_KBD.requires_grad, self.model.training))
        return features_KBD

    monkeypatch.setattr(LinearProbe, "run", watched)
    monkeypatch.setattr(LinearProbe, "_read", reading)
    every = ("trainer.batch_size=718", "trainer.max_steps=4", "task.evaluate_every_epochs=1", "run_name=probe")
    folder = go(tmp_path, *PROBE, *every, f"checkpoint={pretrained}")
    ((task, before),) = tasks
    assert sorted(json.loads((folder / "evaluations.json").read_text())) == ["2", "4"]
    assert_same_bits(task.vit.state_dict(), before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in task.vit.parameters())
    assert {training for training, _, _ in seen} == {False}, "in eval mode in training and in evaluation"
    assert {gradient for _, gradient, _ in seen} == {False}
    # Two steps, then 360 held-out images in batches of 64 with the heads in eval mode, then the same again.
    assert [heads for _, _, heads in seen] == ([True] * 2 + [False] * 6) * 2
    own = saved(pretrained)["model"]
    assert all(torch.equal(value, own[name]) for name, value in before.items())
    assert fingerprint(task.vit) == saved(folder)["task"]["encoder"] == probe(pretrained).weights


def test_an_interruption_changes_no_bit(pretrained: Path, probed: Path, tmp_path: Path) -> None:
    half = go(tmp_path, *PROBE, *SIX, "trainer.max_steps=3", f"checkpoint={pretrained}")
    assert saved(half)["step"] == 3
    whole = go(tmp_path, *PROBE, *SIX, f"checkpoint={pretrained}")
    assert whole == half
    one, other = saved(whole), saved(probed)
    for part in ("model", "optimizer", "rng", "step", "loss", "task"):
        assert_same_bits(one[part], other[part], part)
    assert status(whole)["result"] == status(probed)["result"]


def test_the_same_seed_gives_the_same_numbers(pretrained: Path, probed: Path, tmp_path: Path) -> None:
    again = go(tmp_path, *PROBE, *SIX, f"checkpoint={pretrained}")
    assert measured(again) == measured(probed)
    assert len(measured(again)) == 6 * 6 + 6 + 6 + 4  # loss, lr, norm, epoch, unreadable, FLOPs; val; eval; pretraining
    other = go(tmp_path, *PROBE, *SIX, "seed=1", "run_name=other", f"checkpoint={pretrained}")
    assert measured(other)[1, "train/loss"] != measured(probed)[1, "train/loss"]


def test_another_checkpoint_under_the_same_name_is_refused(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    options = (*PROBE, "run_name=probe", f"checkpoint={tmp_path / 'run'}")
    go(tmp_path, *options, "trainer.max_steps=1")
    run(tmp_path, *ENCODER, "trainer.max_steps=4")  # two more steps of pretraining
    for steps in (1, 2):  # whether the probe was finished or not
        with pytest.raises(UserError, match=r"checkpoint=.*/run has changed since this run began.*run_name="):
            go(tmp_path, *options, f"trainer.max_steps={steps}")


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("task.features=[cls,cls]",), r"task\.features=\['cls', 'cls'\] must be different kinds"),
        (("task.base_lrs=[0.1,0.1]",), r"task\.base_lrs=\[0\.1, 0\.1\] must be different learning rates"),
        (("trainer.clip_grad=1.0",), r"trainer\.clip_grad would couple the heads' gradients"),
        (("trainer.batch_size=4", "trainer.accumulate=4"), r"needs two images per process"),
        (("trainer.batch_size=1438",), r"trainer\.batch_size=1438"),
        (("data.image_size=64",), r"is for images of 32x32, the data are of 64x64"),
    ],
)
def test_impossible_options(pretrained: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        go(tmp_path, *PROBE, "run_name=refused", f"checkpoint={pretrained}", *options)
    assert isinstance(raised.value, UserError) or isinstance(raised.value.__cause__, UserError)
    assert not (tmp_path / "refused").exists(), "nothing is written"


def test_one_head_alone_may_be_clipped(pretrained: Path) -> None:
    assert probe(pretrained, "trainer.clip_grad=1.0", "task.features=[cls]").head_names == ["cls"]
