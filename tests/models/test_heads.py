"""Linear heads that share an encoder pass but train independently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from semaim.data.loading import TrainingData
from semaim.data.workers import Loading
from semaim.lifecycle import session
from semaim.models.heads import LinearHeads
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.tasks.linprobe import LinearProbe
from semaim.training import loop
from semaim.training.step import TrainingTask
from support.in_process import composed, logging_left_as_found

WEIGHTS = ("weight", "bias")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads_with(width: int, classes: int, kinds: int, lr_scales: list[float], seed: int = 3) -> LinearHeads:
    """Heads with weights and biases that differ from their initial values."""
    heads = LinearHeads(width, classes, kinds, lr_scales)
    with torch.no_grad():
        for place, parameter in enumerate(heads.parameters()):
            parameter += randn(*parameter.shape, seed=seed + place)
    return heads


@torch.no_grad()
def test_batch_norm_by_hand() -> None:
    # The second column's variance is close to the epsilon, so that 1e-5 instead would be detected.
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


class Rows:
    """Features (M, K, D) in place of images, for the loader."""

    def __init__(self, features_MKD: Tensor, labels_M: Tensor) -> None:
        self.features_MKD, self.labels_M = features_MKD, labels_M

    def __len__(self) -> int:
        return len(self.labels_M)

    def read(self, index: int) -> Tensor:
        return self.features_MKD[index]

    def label(self, index: int) -> int:
        return int(self.labels_M[index])

    def name(self, index: int) -> str:
        return f"row {index}"

    def fingerprint(self) -> str:
        return "rows"


class ProbeOfRows(LinearProbe):
    """The linear probe's training, on `Rows` in place of an encoder's features."""

    def __init__(self, heads: LinearHeads) -> None:
        self.model = heads
        self.lrs = [1.0]

    def _read(self, rows_BKD: Tensor) -> Tensor:
        return rows_BKD.transpose(0, 1)

    # Without an encoder.
    evaluate, state_dict, step_flops = TrainingTask.evaluate, TrainingTask.state_dict, TrainingTask.step_flops


def fit(heads: LinearHeads, features_MKD: Tensor, labels_M: Tensor, folder: Path, *overrides: str) -> None:
    """Train heads on fixed features with the linear probe's optimizer and the common training loop."""
    quiet = ("trainer.log_every_steps=100000", "trainer.save_every_epochs=400")
    cfg = composed("optimizer=sgd_linprobe", "trainer=linprobe", *quiet, *overrides)
    rows: Any = Rows(features_MKD, labels_M)
    task = ProbeOfRows(heads)
    task.training = TrainingData(rows, lambda x: x, Loading(0, 60.0, 0), max_unreadable=0)
    task.optimizer = instantiate(cfg.optimizer, _convert_="all")
    folder.mkdir()
    with logging_left_as_found(), session("cpu") as (processes, stop):
        surroundings = Run(RunFolder(folder), {}, processes, 0, stop, journal=None)
        loop.fit(task, instantiate(cfg.trainer, _convert_="all"), surroundings)


def test_heads_train_independently(tmp_path: Path) -> None:
    """Three learning rates on two kinds of features in one pass, against six passes."""
    scales = [1.0, 0.1, 8.0]
    features_MKD, labels_M = randn(64, 2, 5), torch.arange(64) % 3
    features_MKD[:, 1, :3] += 2 * F.one_hot(labels_M)  # one kind is more informative
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
    tolerance allows a factor of ten for rounding on other machines.
    """
    n, wd = 40, 0.1
    labels_M = torch.tensor([0] * 24 + [1] * 10 + [2] * 6)  # of different sizes: the biases matter
    features_MD = randn(n, 4) * torch.tensor([3.0, 1.0, 0.2, 5.0]) + 2.0
    features_MD[:, 1] += labels_M
    heads = LinearHeads(4, 3, 1, [1.0])
    lr = 0.3 * 256 / n
    length = (f"trainer.batch_size={n}", "trainer.epochs=400")
    fit(heads, features_MD[:, None], labels_M, tmp_path / "ours", *length, f"optimizer.base_lr={lr}",
        f"optimizer.weight_decay={wd}")  # fmt: skip
    x_MD = (features_MD - features_MD.mean(0)) / (features_MD.var(0, correction=0) + 1e-6).sqrt()
    theirs = LogisticRegression(C=1 / (n * wd), tol=1e-10, max_iter=10000).fit(x_MD.double().numpy(), labels_M.numpy())
    ours = [value.detach().double().numpy() for value in heads.heads[0].parameters()]
    centred = theirs.intercept_ - theirs.intercept_.mean()  # a constant added to all biases has no effect
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
    batch: Any = type("Batch", (), {"images_BCHW": features_KBD.transpose(0, 1), "labels_B": labels_B})
    state: Any = type("State", (), {"forward": heads})
    found_B = ProbeOfRows(heads).loss(batch, state, None)  # type: ignore[arg-type]
    logits_SBC = heads(features_KBD).double()
    expected_B = -logits_SBC.log_softmax(-1)[:, torch.arange(5), labels_B].sum(0)
    assert torch.allclose(found_B.double(), expected_B, rtol=1e-5)
