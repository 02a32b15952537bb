"""Steps between two looks of the host: nothing waits for the device, and a step that is not finite changes nothing.

A CPU is looked at after every step. Here it is looked at after five, as a GPU is.

Shapes: B images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import Lamb, Lars
from timm.utils.model_ema import ModelEmaV3

from semaim.core.distributed import Processes
from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.data.loading import UnreadableImages
from semaim.errors import NonFiniteError
from semaim.tasks.pretrain import Pretraining
from semaim.training import look, loop
from semaim.training.update import update_average, update_weights
from support.commands import ENVIRONMENT, SMALL, journal, losses, run_together, status
from support.evaluating import CPU, assert_same_bits, noise, surroundings
from support.in_process import run, run_here
from support.no_host_reads import NoHostReads
from support.paced import import_path
from support.targets import weights

EVERY = 5
SELDOM = (f"trainer.log_every_steps={EVERY}", "trainer.warmup_epochs=0", "trainer.clip_grad=0.1")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "fused SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=False),
    "AMSGrad": lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True, foreach=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.5),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1, momentum=0.9, centered=True),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.1),
    "LAMB": lambda groups: Lamb(groups, lr=0.1),
    "LARS": lambda groups: Lars(groups, lr=0.1, momentum=0.9),
}
COUNT_ON_THE_HOST = {"AdamW", "AMSGrad", "Adagrad", "LAMB"}  # the host knows their number of steps, also with a GPU


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "steps_between_looks", lambda *_: EVERY)
    monkeypatch.setattr(look, "LONGEST_SECONDS", 1e9)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """One image of step 2 has a loss of NaN. The networks and the optimizer before each step, by its number."""
    loss, train_step, before = Pretraining.loss, loop.train_step, {}

    def poisoning(self: Pretraining, batch: Batch, state: Any, draws: StepNoise) -> torch.Tensor:
        factor_B = torch.ones(len(batch.index_B))
        factor_B[3] = math.nan if state.step == 2 and batch.first_row == 0 else 1.0
        return loss(self, batch, state, draws) * factor_B

    def recording(task: Any, trainer: Any, state: Any, *others: Any) -> None:
        before[state.step] = deepcopy(everything(state))
        train_step(task, trainer, state, *others)
        before["after"] = everything(state)

    monkeypatch.setattr(Pretraining, "loss", poisoning)
    monkeypatch.setattr(loop, "train_step", recording)
    return before


def everything(state: Any) -> dict[str, Any]:
    average = state.ema.module.state_dict() if state.ema else {}
    optimizer = state.optimizer.state_dict()["state"]
    return {"model": dict(state.model.state_dict()), "ema": dict(average), "optimizer": optimizer}


@pytest.mark.parametrize(
    "how",
    [
        ("trainer.ema=true", "target=ema"),
        ("trainer.ema=true", "trainer.precision=fp16", "trainer.accumulate=2"),
        ("optimizer.optimizer.fused=false", "trainer.precision=bf16", "evaluators=[linear]"),
    ],
    ids=["average", "fp16", "plain AdamW"],
)
def test_a_step_that_is_not_finite_and_those_after_it_change_nothing(
    tmp_path: Path, poisoned: dict[Any, Any], how: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*SMALL, *SELDOM, *how, "trainer.max_steps=9", "run_name=bad")
    assert run_here(tmp_path, *options) == 3
    assert sorted(key for key in poisoned if key != "after") == list(range(EVERY)), "found at the next look only"
    assert_same_bits(poisoned["after"], poisoned[2])
    with pytest.raises(AssertionError):
        assert_same_bits(poisoned[2], poisoned[1])
    folder = tmp_path / "runs" / "bad"
    said = capsys.readouterr().err
    assert "the loss of 1 image ('digits/train[" in said
    assert "is not finite at step 2; training stopped before the update, and there is no checkpoint yet" in said
    report = json.loads((folder / "not_finite_step_00000002.json").read_text())
    assert [image["loss"] for image in report["images"]].count("nan") == 1
    assert len(report["images"]) == 16
    assert (report["step"], report["loss"]) == (2, "nan")
    assert status(folder)["state"] == "failed"
    assert not list(folder.rglob("*.pt"))


def test_fp16_skips_an_overflow_and_lowers_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Pretraining.loss

    def steep(self: Pretraining, batch: Batch, state: Any, draws: StepNoise) -> torch.Tensor:
        return loss(self, batch, state, draws) * (1e5 if state.step == 1 else 1.0)

    monkeypatch.setattr(Pretraining, "loss", steep)
    every_step = ("trainer.save_every_steps=1", "trainer.keep_checkpoints=3")
    folder = run(tmp_path, *SELDOM, *every_step, "trainer.precision=fp16", "trainer.max_steps=3")
    first, second, third = (
        torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True) for step in (1, 2, 3)
    )
    assert_same_bits(first["model"], second["model"])
    assert_same_bits(first["optimizer"]["state"], second["optimizer"]["state"])
    assert first["scaler"]["scale"] == 2 * second["scaler"]["scale"] == 65536
    assert [float(each["optimizer"]["state"][0]["step"]) for each in (first, second, third)] == [1, 1, 2]


def test_a_checkpoint_before_the_look_is_the_last_good_one(tmp_path: Path, poisoned: dict[Any, Any]) -> None:
    with pytest.raises(NonFiniteError, match=r"step 2; .* the last good checkpoint is .*step_00000002\.pt\."):
        run(tmp_path, *SELDOM, "trainer.max_steps=9", "trainer.save_every_steps=2")
    assert max(key for key in poisoned if key != "after") == 3, "the host looks before it would save step 4"
    assert_same_bits(weights(tmp_path / "run")["model"], poisoned[2]["model"])


def test_seldom_looks_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SELDOM, "trainer.max_steps=13", "trainer.ema=true", "evaluators=[linear]", "model.drop_path=0.1",
               "task.evaluators.linear.every_epochs=null")  # fmt: skip
    looks = []
    look_at = loop.look
    monkeypatch.setattr(
        loop, "look", lambda unseen, *others: (looks.append(len(unseen.steps)), look_at(unseen, *others))[1]
    )
    seldom = run(tmp_path / "seldom", *options)
    assert looks == [1, 4, 5, 3]
    monkeypatch.setattr(loop, "steps_between_looks", lambda *_: 1)
    often = run(tmp_path / "often", *options)
    assert looks[4:] == [1] * 13
    assert list(losses(seldom)) == [5, 10, 13]
    for one, other in zip(journal(seldom), journal(often), strict=True):
        for name in ("train/loss", "train/grad_norm", "train/lr", "train/epoch"):
            assert one.get("metrics", {}).get(name) == other.get("metrics", {}).get(name)
    one, other = weights(seldom), weights(often)
    for part in ("model", "ema", "optimizer", "rng", "step", "loss", "task", "data_position"):
        assert_same_bits(one[part], other[part], part)


@dataclass(frozen=True)
class Alike(Processes):
    """Two processes with the same numbers."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


@pytest.mark.parametrize(("seconds", "steps"), [(2.0, 1), (0.3, 3), (0.02, 20), (0.0001, 20)])
def test_no_longer_than_a_second_passes_between_looks(
    tmp_path: Path, seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal is answered soon, however slow a step is."""
    monkeypatch.setattr(look, "LONGEST_SECONDS", 1.0)
    monkeypatch.setattr("time.perf_counter", lambda: 10 + 2 * seconds)
    taken = [look.Step(number, torch.tensor([0.5, 1.0, 0.0]), [], 0.1, 0.0) for number in (7, 8)]
    unseen = look.Unseen(torch.tensor(False), longest=20, steps=taken, began=10.0)
    with surroundings(tmp_path) as alone:
        here = replace(alone, processes=Alike(0, 2, CPU))
        results = look.look(unseen, UnreadableImages(0), noise(), here)
    assert [result.seconds for result in results] == [pytest.approx(seconds)] * 2
    assert (unseen.interval, unseen.steps) == (steps, [])


def test_two_processes_look_at_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one alone has the bad image, then the signal."""
    for name, value in import_path().items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    options = (*SMALL, *SELDOM, "data.source._target_=support.seldom.images", "trainer.max_steps=9")
    bad = run_together(tmp_path, *options, "run_name=bad", "data.source.val_fraction=0.3")
    assert [each.returncode for each in bad] == [3, 3], bad[0].stdout
    assert "the loss of 1 image ('squares/train[" in bad[0].stdout
    assert "is not finite at step 2" in bad[0].stdout
    assert len(json.loads((tmp_path / "runs/bad/not_finite_step_00000002.json").read_text())["images"]) == 16
    stopped = run_together(tmp_path, *options, "run_name=stopped")
    assert [each.returncode for each in stopped] == [75, 75], stopped[0].stdout
    assert "stopped by SIGTERM after step 5, which is saved" in stopped[0].stdout
    assert weights(tmp_path / "runs/stopped")["step"] == 5


# Updates that a flag skips


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_of_an_optimizer_leaves_no_trace(name: str) -> None:
    """As if it had not been, to the last bit; also if it is the first, whose state is new."""

    def trained(pattern: str) -> tuple[list[torch.Tensor], Any]:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(size, generator=generator, requires_grad=True) for size in ((4, 3), (3,))]
        gradients = iter([[torch.randn(w.shape, generator=generator) for w in weights] for _ in range(3)])
        optimizer = OPTIMIZERS[name]([{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}])
        for kind in pattern:
            good = next(gradients) if kind == "." else [torch.full_like(w, math.nan) for w in weights]
            for weight, gradient in zip(weights, good, strict=True):
                weight.grad = gradient
            with NoHostReads() as mode:
                mode.allowed = name in COUNT_ON_THE_HOST
                update_weights(optimizer, torch.tensor(kind == "x"))
        return [w.detach() for w in weights], optimizer.state_dict()["state"]

    expected = trained("...")
    assert_same_bits(trained("..x.x"), expected)
    assert_same_bits(trained("x...x"), expected)


def test_a_moving_average_is_timms_and_can_be_skipped() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.BatchNorm1d(65))
    one, other = ModelEmaV3(model, decay=0.9995), ModelEmaV3(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model[1].num_batches_tracked += 3
    one.update(model)
    with NoHostReads():
        update_average(other, model, 0.9995, torch.tensor(False))
    assert_same_bits(dict(one.module.state_dict()), dict(other.module.state_dict()))
    update_average(other, model, 0.5, torch.tensor(True))
    assert_same_bits(dict(one.module.state_dict()), dict(other.module.state_dict()))
