"""Training on a CUDA device: the host does not wait for it, and nothing else differs.

Skipped without a CUDA device. tests/training/test_look.py and test_no_waiting.py check the same on the CPU.

Shapes: B images.
"""

from __future__ import annotations

import json
import math
import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.data.batches import Batch
from semaim.data.on_device import OnDevice
from semaim.tasks.pretrain import Pretraining
from semaim.training import look, loop
from support.commands import SMALL, losses, started, status, succeed
from support.evaluating import assert_same_bits
from support.in_process import run, run_here
from support.targets import weights, with_small_teachers
from support.waiting import wait_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_GPU = ("device=cuda", "trainer.warmup_epochs=0")
WARM = 3  # steps in which torch prepares kernels and memory, for which it may wait


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    return with_small_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.mark.parametrize(
    ("target", "how"),
    [
        ("pixels", ("trainer.ema=true", "trainer.accumulate=2", "evaluators=[linear]", "model.drop_path=0.1")),
        ("pixels", ("trainer.precision=fp16", "permutation=stochastic_center")),
        ("pixels", ("trainer.precision=float32", "semantic_map=self")),
        ("pixels", ("optimizer.optimizer.fused=false", "permutation=center2out")),
        ("ema", ()),
        ("clip", ()),
    ],
)
def test_the_host_does_not_wait_between_looks(
    tmp_path: Path, targets: Any, target: str, how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step, checked = loop.train_step, []

    def strict(task: Any, trainer: Any, state: Any, *others: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if state.step >= WARM else "default")
        try:
            train_step(task, trainer, state, *others)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        checked.append(state.step)

    monkeypatch.setattr(loop, "train_step", strict)
    folder = run(tmp_path, *ON_GPU, "trainer.log_every_steps=20", "trainer.max_steps=30", *targets[target], *how)
    assert checked == list(range(30))
    assert list(losses(folder)) == [20, 30]
    assert all(math.isfinite(loss) for loss in losses(folder).values())


def everything(state: Any) -> dict[str, Any]:
    optimizer = state.optimizer.state_dict()["state"]
    return {"model": dict(state.model.state_dict()), "ema": dict(state.ema.module.state_dict()), "optimizer": optimizer}


@pytest.mark.parametrize("precision", ["auto", "fp16"])
@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_step_that_is_not_finite_stops_the_run_before_its_update(
    tmp_path: Path, precision: str, fused: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(look, "LONGEST_SECONDS", 1e9)
    loss, train_step, before = Pretraining.loss, loop.train_step, {}

    def poisoning(self: Pretraining, batch: Batch, state: Any, draws: Any) -> torch.Tensor:
        loss_B = loss(self, batch, state, draws)
        bad_B = torch.arange(len(loss_B), device=loss_B.device) == (3 if state.step == 2 else -1)
        return loss_B.masked_fill(bad_B, math.nan)

    def recording(task: Any, trainer: Any, state: Any, *others: Any) -> None:
        before[state.step] = deepcopy(everything(state))
        train_step(task, trainer, state, *others)
        before[-1] = everything(state)

    monkeypatch.setattr(Pretraining, "loss", poisoning)
    monkeypatch.setattr(loop, "train_step", recording)
    how = ("trainer.ema=true", f"trainer.precision={precision}", f"optimizer.optimizer.fused={fused}")
    options = (*SMALL, *ON_GPU, *how, "trainer.log_every_steps=5", "trainer.max_steps=9", "run_name=bad")
    assert run_here(tmp_path, *options) == 3
    assert sorted(before) == [-1, 0, 1, 2, 3, 4]
    assert_same_bits(before[-1]["model"], before[2]["model"])
    assert_same_bits(before[-1]["ema"], before[2]["ema"])
    for one, other in zip(before[-1]["optimizer"].values(), before[2]["optimizer"].values(), strict=True):
        assert_same_bits(*({name: each[name] for name in ("exp_avg", "exp_avg_sq")} for each in (one, other)))
    said = capsys.readouterr().err
    assert "the loss of 1 image ('digits/train[" in said
    assert "is not finite at step 2; training stopped before the update" in said
    folder = tmp_path / "runs" / "bad"
    report = json.loads((folder / "not_finite_step_00000002.json").read_text())
    assert [image["loss"] for image in report["images"]].count("nan") == 1
    assert status(folder)["state"] == "failed"


def test_fp16_skips_an_overflow_and_lowers_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Pretraining.loss
    steep = lambda self, batch, state, draws: loss(self, batch, state, draws) * (1e5 if state.step == 1 else 1.0)  # noqa: E731
    monkeypatch.setattr(Pretraining, "loss", steep)
    folder = run(tmp_path, *ON_GPU, "trainer.precision=fp16", "trainer.max_steps=3", "trainer.save_every_steps=1",
                 "trainer.keep_checkpoints=3")  # fmt: skip
    first, second, third = (
        torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True) for step in (1, 2, 3)
    )
    assert_same_bits(first["model"], second["model"])
    assert first["scaler"]["scale"] == 2 * second["scaler"]["scale"] == 65536
    assert [float(each["optimizer"]["state"][0]["step"]) for each in (first, second, third)] == [1, 1, 2]


def test_batches_that_are_copied_beside_the_computations_are_right() -> None:
    """Also if the device is far behind the host, and the user of a batch has let it go."""
    generator = torch.Generator().manual_seed(0)
    on_host = [
        Batch(torch.randn(64, 3, 64, 64, generator=generator), torch.full((64,), number), torch.arange(64), 0, [])
        for number in range(30)
    ]
    device, busy = torch.device("cuda", 0), torch.randn(4096, 4096, device="cuda")
    found = []
    for batch in OnDevice(iter([replace(each).pin_memory() for each in on_host]), device):
        busy = (busy @ busy).sigmoid()
        images, labels = batch.images_BCHW, batch.labels_B
        del batch
        found.append((images.double().sum(), images[5, 1, 7].clone(), labels.clone()))
        del images, labels
    assert len(found) == len(on_host)
    for (total, row, labels), batch in zip(found, on_host, strict=True):
        assert float(total) == pytest.approx(float(batch.images_BCHW.double().sum()), abs=1e-6)
        assert torch.equal(row.cpu(), batch.images_BCHW[5, 1, 7])
        assert torch.equal(labels.cpu(), batch.labels_B)


def test_no_more_than_two_batches_are_on_the_device() -> None:
    size = 64 * 2**20
    pinned = torch.zeros(size, dtype=torch.uint8).pin_memory()
    batches = (Batch(pinned, torch.zeros(1).pin_memory(), torch.zeros(1), 0, []) for _ in range(20))
    busy = torch.randn(8192, 8192, device="cuda")
    out = torch.mm(busy, busy)  # has its workspace now
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in OnDevice(batches, torch.device("cuda", 0)):
        torch.mm(busy, busy, out=out)
    assert torch.cuda.max_memory_allocated() - before < 2.5 * size


def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The same images, orders and random numbers. Losses are equal up to rounding: some kernels add in any order."""
    options = (*SMALL, *ON_GPU, "trainer.precision=float32", "trainer.save_every_steps=5", "trainer.log_every_steps=5",
               "trainer.ema=true", "model.drop_path=0.1")  # fmt: skip
    killed = tmp_path / "runs" / "killed"
    with started(tmp_path, *options, "run_name=killed", "trainer.max_steps=4000") as process:
        wait_for(lambda: len(losses(killed)) > 3, "some steps")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    done = max(int(path.stem.split("_")[1]) for path in (killed / "checkpoints").glob("*.pt"))
    last = f"trainer.max_steps={done + 20}"
    assert f"continuing after step {done} of" in succeed(tmp_path, *options, "run_name=killed", last)
    succeed(tmp_path, *options, "run_name=undisturbed", last)
    undisturbed = tmp_path / "runs" / "undisturbed"
    found, expected = (
        {step: loss for step, loss in losses(each).items() if step > done} for each in (killed, undisturbed)
    )
    assert sorted(found) == [done + 5, done + 10, done + 15, done + 20]
    assert found == pytest.approx(expected, rel=5e-2)
    one, other = weights(killed), weights(undisturbed)
    for part in ("rng", "data_position", "step", "scaler"):
        assert_same_bits(one[part], other[part], part)


def test_float32_is_tf32_in_training_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_float32_matmul_precision()
    assert run_here(tmp_path, *SMALL, *ON_GPU, "trainer.precision=float32", "trainer.max_steps=1", "run_name=x") == 0
    assert "float32: training computes matrix products in TensorFloat-32" in capsys.readouterr().err
    assert torch.get_float32_matmul_precision() == before
