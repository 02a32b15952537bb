"""Between two looks the host reads nothing from its device, and copies nothing to it in a way that it waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.training import loop
from support.in_process import run
from support.no_host_reads import NoHostReads, pretended
from support.targets import ORDERS, task_of, with_small_teachers


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    return with_small_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.mark.parametrize(
    ("target", "how"),
    [
        ("pixels", ("trainer.ema=true", "trainer.accumulate=2", "evaluators=[linear]")),
        ("pixels", ("trainer.precision=fp16", "semantic_map=self", "semantic_map.full_precision=true")),
        ("pixels", ("trainer.precision=bf16", "model.drop_path=0.1")),
        ("ema", ("permutation=stochastic_center",)),
        ("clip", ("semantic_map=gap",)),
    ],
)
def test_the_host_reads_nothing_during_a_step(
    tmp_path: Path, targets: Any, target: str, how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step, next_batch, mode = loop.train_step, loop.OnDevice.__next__, NoHostReads()

    def watched(*arguments: Any) -> None:
        with mode:
            train_step(*arguments)

    def unwatched(self: Any) -> Batch:  # images are read on the host
        mode.allowed = True
        batch = next_batch(self)
        mode.allowed = False
        return batch

    monkeypatch.setattr(loop, "train_step", watched)
    monkeypatch.setattr(loop.OnDevice, "__next__", unwatched)
    run(
        tmp_path,
        "trainer.warmup_epochs=0",
        "trainer.clip_grad=0.1",
        *targets[target],
        *how,
        "trainer.max_steps=2",
        "data.num_workers=0",
    )
    assert mode.operations > 1000


def test_a_read_would_be_found() -> None:
    for wrong in (
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.empty(3, device="cuda").copy_(torch.ones(3)),
        lambda: torch.tensor([1.0], device="cuda"),
    ):
        with pytest.raises((AssertionError, RuntimeError)), pretended():
            wrong()
    for wrong in (lambda: torch.ones(1).item(), lambda: torch.ones(3)[torch.ones(3) > 0], lambda: bool(torch.ones(()))):
        with pytest.raises(AssertionError), NoHostReads():
            wrong()
    with pretended():
        torch.ones(3).to("cuda", non_blocking=True)
        torch.empty(3, device="cuda").copy_(torch.ones(3), non_blocking=True)


@pytest.mark.parametrize(
    ("target", "how"),
    [
        *(("pixels", (f"permutation={order}",)) for order in ORDERS),
        ("pixels", ("semantic_map=self", "semantic_map.full_precision=true")),
        ("online", ("semantic_map=gap", "model.drop_path=0.1")),
    ],
)
def test_no_copy_to_the_device_that_the_host_waits_for(target: str, how: tuple[str, ...], targets: Any) -> None:
    task = task_of(*targets[target], *how)
    with pretended() as mode:
        mode.allowed = True
        for module in task.model.modules():
            for name, each in module._parameters.items():
                if each is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(each.shape, device="cuda"))
            for name, each in module._buffers.items():
                module._buffers[name] = torch.empty(each.shape, device="cuda")
        state: Any = type("State", (), {"model": task.model, "forward": task.model, "ema": None})
        labels_B = torch.zeros(4, dtype=torch.long, device="cuda")
        batch = Batch(torch.empty(4, 3, 32, 32, device="cuda"), labels_B, torch.arange(4), 0, [])
        noise = StepNoise(0, 0, 4)
        noise._batch_noise = torch.rand(4, 65)  # it cannot be pinned here
        mode.allowed = False
        loss_B = task.loss(batch, state, noise)
    assert (loss_B.shape, loss_B.device.type) == ((4,), "cuda")
    assert mode.operations > 200
