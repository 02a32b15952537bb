"""The linear probe: heads that share a pass but not their learning, on an encoder that nothing changes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import fingerprint
from semaim.data.loading import TrainingData
from semaim.data.sources import digits
from semaim.errors import UserError
from semaim.evaluation.accuracy import Answers
from semaim.lifecycle import session
from semaim.models.heads import LinearHeads
from semaim.models.vit import encode
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.tasks.fewshot import FeatureRows
from semaim.tasks.linprobe import HeadTraining, LinearProbe
from semaim.training import loop
from support.commands import journal, status
from support.evaluating import assert_same_bits
from support.in_process import composed, go, job, logging_left_as_found, run

# One pretrained encoder of 16 patches for the whole file; a probe of six steps of it takes a second.
ENCODER = ("data.patch_size=8", "trainer.max_steps=2")
PROBE = (
    "tracking=none",
    "data.patch_size=8",
    "task=linprobe",
    "trainer.log_every_steps=1",
    "trainer.batch_size=64",
    "optimizer.base_lr=0.1",
)
SIX = ("trainer.max_steps=6", "run_name=probe")
WEIGHTS = ("weight", "bias")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("pretrained"), *ENCODER)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Run folder of a probe of six steps."""
    return go(tmp_path_factory.mktemp("probed"), *PROBE, *SIX, f"checkpoint={pretrained}")


def probe(pretrained: Path, *overrides: str) -> LinearProbe:
    """The task of a command line, not yet run."""
    return instantiate(job(*PROBE, "run_name=x", f"checkpoint={pretrained}", *overrides).cfg.task, _convert_="all")


def saved(folder: Path) -> dict[str, Any]:
    state = store.newest(folder / "checkpoints")
    assert state is not None
    return state


def measured(folder: Path) -> dict[tuple[int, str], float]:
    """Every metric of the journal that is not a matter of time."""
    timed = {"train/images_per_second", "data/wait", "train/device_hours"}
    return {
        (line["step"], key): value
        for line in journal(folder)
        for key, value in line.get("metrics", {}).items()
        if key not in timed
    }


# The heads


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads_with(width: int, classes: int, kinds: int, lr_scales: list[float], seed: int = 3) -> LinearHeads:
    """Heads whose weights and biases are not those of a start."""
    heads = LinearHeads(width, classes, kinds, lr_scales)
    with torch.no_grad():
        for place, parameter in enumerate(heads.parameters()):
            parameter += randn(*parameter.shape, seed=seed + place)
    return heads


@torch.no_grad()
def test_batch_norm_by_hand() -> None:
    # The second column's variance is about that of the epsilon, so that 1e-5 in its place would show.
    features_KBD = randn(2, 16, 3) * torch.tensor([2.0, 1e-3, 0.5]) + torch.tensor([5.0, 2e-3, 0.0])
    heads = heads_with(3, 4, 2, [1.0, 10.0])
    expected = []
    for s in range(4):
        x_BD = features_KBD[s // 2].double()
        variance_D = (x_BD - x_BD.mean(0)).square().mean(0)  # without Bessel's correction
        x_BD = (x_BD - x_BD.mean(0)) / (variance_D + 1e-6).sqrt()
        expected.append(x_BD @ heads.heads[s].weight.double().T + heads.heads[s].bias.double())
    logits_SBC = heads.train()(features_KBD)
    assert logits_SBC.shape == (4, 16, 4)
    assert torch.allclose(logits_SBC.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)
    # Evaluation uses running statistics: a tenth of the batch's (with Bessel's correction) after one batch.
    x_BD = features_KBD[1].double()
    x_BD = (x_BD - 0.1 * x_BD.mean(0)) / (0.9 + 0.1 * x_BD.var(0) + 1e-6).sqrt()
    by_hand_BC = x_BD @ heads.heads[3].weight.double().T + heads.heads[3].bias.double()
    assert torch.allclose(heads.eval()(features_KBD)[3].double(), by_hand_BC, rtol=1e-4, atol=1e-4)


def test_the_norm_has_no_parameters() -> None:
    heads = LinearHeads(3, 4, 2, [1.0])
    assert {name for name, _ in heads.named_parameters()} == {f"heads.{s}.{n}" for s in (0, 1) for n in WEIGHTS}
    assert [norm.eps for norm in heads.norms] == [1e-6, 1e-6]


def test_heads_start_small() -> None:
    torch.manual_seed(0)
    heads = LinearHeads(400, 100, 1, [1.0, 2.0])
    for head in heads.heads:
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(head.weight.mean().item()) < 2e-4
        assert not head.bias.any()
    assert not torch.equal(heads.heads[0].weight, heads.heads[1].weight)


def fit(heads: LinearHeads, features_MKD: Tensor, labels_M: Tensor, folder: Path, *overrides: str) -> None:
    """Train heads on fixed features with the optimizer of the linear probe and the one training loop."""
    cfg = composed("optimizer=sgd_linprobe", "trainer=fewshot", "trainer.log_every_steps=100000", *overrides)
    rows: Any = FeatureRows(features_MKD, labels_M)
    training = TrainingData(rows, lambda x: x, num_workers=0, max_unreadable=0)
    task = HeadTraining(heads, training, lambda x: x.transpose(0, 1), instantiate(cfg.optimizer, _convert_="all"))
    folder.mkdir()
    with logging_left_as_found(), session("cpu") as (processes, stop):
        surroundings = Run(RunFolder(folder), {}, processes, 0, stop, journal=None, quiet=True)
        loop.fit(task, instantiate(cfg.trainer, _convert_="all"), surroundings)


def test_heads_learn_as_if_alone(tmp_path: Path) -> None:
    """Three learning rates on two kinds of features in one pass, against six passes."""
    scales = [1.0, 0.1, 8.0]
    features_MKD, labels_M = randn(64, 2, 5), torch.arange(64) % 3
    features_MKD[:, 1, :3] += 2 * F.one_hot(labels_M)  # one kind tells more than the other
    settings = ("trainer.batch_size=16", "trainer.epochs=6", "optimizer.weight_decay=0.05")
    together = heads_with(5, 3, 2, scales)
    alone = [LinearHeads(5, 3, 1, [scale]) for _ in range(2) for scale in scales]
    for s, one in enumerate(alone):
        one.heads[0].load_state_dict(together.heads[s].state_dict())
    before = {name: p.detach().clone() for name, p in together.named_parameters()}
    fit(together, features_MKD, labels_M, tmp_path / "together", *settings)
    for s, one in enumerate(alone):
        fit(one, features_MKD[:, s // 3 : s // 3 + 1], labels_M, tmp_path / f"alone_{s}", *settings)
        for name in WEIGHTS:
            found, expected = getattr(together.heads[s], name), getattr(one.heads[0], name)
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7), (s, name)
            assert (expected - before[f"heads.{s}.{name}"]).abs().max() > 1e-3, "it learned"
    for kind in range(2):
        for name, value in alone[3 * kind].norms[0].state_dict().items():
            assert torch.allclose(together.norms[kind].state_dict()[name], value, rtol=1e-6, atol=1e-7), name


def test_a_converged_head_is_scikit_learns_logistic_regression(tmp_path: Path) -> None:
    """Full batches, standardised features, an L2 penalty on the weights and none on the biases.

    The loss is strongly convex with modulus wd in the weights, so weights are within (gradient's norm) / wd of the
    optimum. In float32 the gradient, a mean of terms below 1, is known to about 1e-7, which makes 1e-6 here; the
    tolerance leaves a factor of ten for another machine's rounding.
    """
    n, wd = 40, 0.1
    labels_M = torch.tensor([0] * 24 + [1] * 10 + [2] * 6)  # of different sizes: the biases matter
    features_MD = randn(n, 4) * torch.tensor([3.0, 1.0, 0.2, 5.0]) + 2.0
    features_MD[:, 1] += labels_M
    heads = LinearHeads(4, 3, 1, [1.0])
    lr = 0.3 * 256 / n
    length = (f"trainer.batch_size={n}", "trainer.epochs=400", "trainer.save_every_epochs=400")
    fit(heads, features_MD[:, None], labels_M, tmp_path / "ours", *length, f"optimizer.base_lr={lr}",
        f"optimizer.weight_decay={wd}")  # fmt: skip
    x_MD = (features_MD - features_MD.mean(0)) / (features_MD.var(0, correction=0) + 1e-6).sqrt()
    theirs = LogisticRegression(C=1 / (n * wd), tol=1e-10, max_iter=10000).fit(x_MD.double().numpy(), labels_M.numpy())
    ours = [value.detach().double().numpy() for value in heads.heads[0].parameters()]
    centred = theirs.intercept_ - theirs.intercept_.mean()  # adding a number to all biases changes nothing
    assert np.abs(ours[0] - theirs.coef_).max() < 1e-5
    assert np.abs(ours[1] - ours[1].mean() - centred).max() < 1e-5
    assert np.abs(centred).max() > 0.3, "the biases matter"

    def loss(weight: Any, bias: Any) -> float:
        logits = x_MD.double().numpy() @ weight.T + bias
        right = logits[np.arange(n), labels_M.numpy()]
        return float((np.log(np.exp(logits).sum(1)) - right).mean() + wd / 2 * (weight**2).sum())

    assert loss(*ours) == pytest.approx(loss(theirs.coef_, theirs.intercept_), rel=1e-7)
    predicted = (x_MD.double().numpy() @ ours[0].T + ours[1]).argmax(1)
    assert (predicted == theirs.predict(x_MD.double().numpy())).all()
    assert (predicted == labels_M.numpy()).mean() < 1.0, "the classes overlap, so the optimum is not at infinity"


def test_the_loss_of_an_image_is_the_sum_over_heads() -> None:
    heads, features_KBD, labels_B = heads_with(3, 4, 2, [1.0, 2.0]), randn(2, 5, 3), torch.tensor([0, 3, 1, 1, 2])
    task = HeadTraining(heads, None, lambda x: x, None)  # type: ignore[arg-type]
    batch: Any = type("Batch", (), {"images_BCHW": features_KBD, "labels_B": labels_B})
    state: Any = type("State", (), {"forward": heads})
    found_B = task.loss(batch, state, None)  # type: ignore[arg-type]
    logits_SBC = heads(features_KBD).double()
    expected_B = -logits_SBC.log_softmax(-1)[:, torch.arange(5), labels_B].sum(0)
    assert torch.allclose(found_B.double(), expected_B, rtol=1e-5)


# The task


def test_what_a_run_leaves(probed: Path) -> None:
    result = status(probed)["result"]
    assert set(result) == {"linprobe_cls", "linprobe_mean"}
    assert status(probed)["metric"] == "linprobe_cls"
    evaluations = json.loads((probed / "evaluations.json").read_text())
    assert evaluations == {"6": {"val/cls": result["linprobe_cls"], "val/mean": result["linprobe_mean"]}}
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


def test_the_accuracy_is_that_of_the_saved_heads(pretrained: Path, probed: Path) -> None:
    """Computed anew from the checkpoint, the encoder and the digits, with their normalisation by hand."""
    vit, val = probe(pretrained).vit, digits().val
    assert val is not None
    images_NCHW = torch.from_numpy(np.stack([np.asarray(val.read(i)) for i in range(360)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        by_kind = encode(vit, (images_NCHW / 255 - 0.3) / 0.36)
    heads = LinearHeads(32, 10, 2, [1.0])
    heads.load_state_dict(saved(probed)["model"])
    with torch.no_grad():
        predicted_SM = heads.eval()(torch.stack([by_kind["cls"], by_kind["mean"]])).argmax(-1)
    labels_M = torch.tensor([val.label(i) for i in range(360)])
    for s, kind in enumerate(("cls", "mean")):
        found = 100 * (predicted_SM[s] == labels_M).double().mean().item()
        # One image may lie on a border, since batches of another size round in another way.
        assert found == pytest.approx(status(probed)["result"][f"linprobe_{kind}"], abs=100 / 360 + 1e-9), kind


def test_the_encoder_stays_as_it_is(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_stopping_half_way_changes_no_bit(pretrained: Path, probed: Path, tmp_path: Path) -> None:
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
    assert len(measured(again)) == 6 * 5 + 2 + 2 + 3  # loss, lr, norm, epoch, unreadable; val; eval; of the pretraining
    other = go(tmp_path, *PROBE, *SIX, "seed=1", "run_name=other", f"checkpoint={pretrained}")
    assert measured(other)[1, "train/loss"] != measured(probed)[1, "train/loss"]


def test_another_checkpoint_under_the_same_name_is_refused(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    options = (*PROBE, "run_name=probe", f"checkpoint={tmp_path / 'run'}")
    go(tmp_path, *options, "trainer.max_steps=1")
    run(tmp_path, *ENCODER, "trainer.max_steps=4")  # two more steps of pretraining
    for steps in (1, 2):  # whether or not the probe had more to do
        with pytest.raises(UserError, match=r"checkpoint=.*/run has changed since this run began.*run_name="):
            go(tmp_path, *options, f"trainer.max_steps={steps}")


# Which images are trained on, and which learning rate is chosen


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the places in the training set of all images that a probe learns from."""
    seen: list[int] = []
    whole = HeadTraining.loss

    def watched(self: HeadTraining, batch: Any, state: Any, noise: Any) -> Tensor:
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
    held: Any = task.chosen_on
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
    assert set(status(folder)["result"]) == {"linprobe_cls", "linprobe_mean"}
    lrs = [line["metrics"]["train/lr"] for line in journal(folder) if "train/lr" in line.get("metrics", {})]
    assert lrs[0] == pytest.approx(0.1 * 479 / 256, rel=1e-12)
    groups = saved(folder)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([3 * lrs[-1]] * 4, rel=1e-12), "0.3 in place of 0.1"


def crafted(right: dict[str, dict[str, int]]) -> Callable[..., dict[str, Answers]]:
    """Answers of which so many are right, by number of images and name of the head."""

    def answers(self: LinearProbe, images: Any, _: Run) -> dict[str, Answers]:
        labels_M = torch.tensor([images.label(i) for i in range(len(images))])
        counts = right["choice" if images is self.chosen_on else "test"]
        predicted = {name: torch.where(torch.arange(len(labels_M)) < counts[name], labels_M, (labels_M + 1) % 10)
                     for name in self.head_names}  # fmt: skip
        return {name: Answers(predicted[name], labels_M, self.classes) for name in self.head_names}

    return answers


def test_the_choice_is_made_on_held_out_training_images(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head that is best there is the worst on the test images; each kind has its own choice."""
    right = {
        "choice": {"cls_lr0.1": 50, "cls_lr0.3": 90, "cls_lr1": 70, "mean_lr0.1": 33, "mean_lr0.3": 22, "mean_lr1": 11},
        "test": {"cls_lr0.1": 300, "cls_lr0.3": 36, "cls_lr1": 330, "mean_lr0.1": 72, "mean_lr0.3": 360, "mean_lr1": 9},
    }
    monkeypatch.setattr(LinearProbe, "_answers", crafted(right))
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
    assert accuracies.keys() == names
    assert accuracies["holdout/mean_lr0.3"] > accuracies["holdout/mean_lr1e-06"] + 10, "one of them hardly moves"
    result = status(sweep)["result"]
    assert result == {"linprobe_mean": accuracies["val/mean_lr0.3"], "linprobe_mean_base_lr": 0.3}
    assert status(sweep)["metric"] == "linprobe_mean"


def test_a_head_of_the_sweep_is_the_head_of_its_learning_rate(sweep: Path) -> None:
    """Its learning rates in the checkpoint are those of the schedule, times each."""
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


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("task.features=[]",), r"task\.features=\[\] must name cls, mean or both"),
        (("task.features=[cls,max]",), r"task\.features=\['cls', 'max'\] must name"),
        (("task.features=[cls,cls]",), r"task\.features=\['cls', 'cls'\] must name"),
        (("task.base_lrs=[]",), r"task\.base_lrs=\[\] must be positive"),
        (("task.base_lrs=[0.1,0.0]",), r"task\.base_lrs=\[0\.1, 0\.0\] must be positive"),
        (("trainer.clip_grad=1.0",), r"trainer\.clip_grad would let the heads disturb each other"),
        (("task.base_lrs=[0.1,0.2]", "task.holdout=1.0"), r"held-out share of 1\.0"),
        (("trainer.batch_size=4", "trainer.accumulate=4"), r"needs two images per process"),
        (("trainer.batch_size=1438",), r"trainer\.batch_size=1438"),
        (("data.image_size=64",), r"is for images of 32x32, the data are of 64x64"),
    ],
)
def test_what_cannot_work_is_refused(pretrained: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        go(tmp_path, *PROBE, "run_name=refused", f"checkpoint={pretrained}", *options)
    assert isinstance(raised.value, UserError) or isinstance(raised.value.__cause__, UserError)
    assert not (tmp_path / "refused").exists(), "nothing is written"


def test_one_head_alone_may_be_clipped(pretrained: Path) -> None:
    assert probe(pretrained, "trainer.clip_grad=1.0", "task.features=[cls]").head_names == ["cls"]
