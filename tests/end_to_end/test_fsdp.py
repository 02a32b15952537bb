"""Runs whose two processes share every weight (trainer.strategy=fsdp): results and checkpoints are those of others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import semaim
from support import six_steps
from support.commands import SMALL, journal, losses, run, succeed, together
from support.evaluating import assert_same_bits
from support.six_steps import checkpoint

FSDP = "trainer.strategy=fsdp"
SIX_STEPS = (*six_steps.SIX_STEPS, "trainer.ema=true")
assert_close = partial(six_steps.assert_close, parts=("model", "ema"))
HALF = (*SIX_STEPS, "trainer.max_steps=3")


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a checkpoint, by their places in it."""
    if isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(each, f"{name}.{key}")
    else:
        yield name, value


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, in the folder returned."""
    home = tmp_path_factory.mktemp("alone")
    succeed(home, *SIX_STEPS)
    return home


def test_a_checkpoint_of_shared_weights_is_that_of_one_process(tmp_path: Path, alone: Path) -> None:
    together(tmp_path, *SIX_STEPS, FSDP)
    assert_close(tmp_path, alone)
    kept = ("format", "step", "architecture", "model", "ema", "optimizer", "scaler", "task", "data_position")
    ours, theirs = checkpoint(tmp_path), checkpoint(alone)
    assert ours.keys() == theirs.keys()
    found, expected = (dict(tensors({part: each[part] for part in kept})) for each in (ours, theirs))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        if isinstance(value, Tensor):
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)
    model = semaim.load_model(tmp_path / "runs" / "six", ema=True)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in ours["ema"].items())


def test_saved_by_two_and_continued_by_one(tmp_path: Path, alone: Path) -> None:
    together(tmp_path, *HALF, FSDP)
    out = succeed(tmp_path, *SIX_STEPS)
    assert "the checkpoint is of 2 processes, now there are 1" in out
    assert_close(tmp_path, alone)


def test_saved_by_one_and_continued_by_two(tmp_path: Path, alone: Path) -> None:
    succeed(tmp_path, *HALF)
    assert "continuing after step 3" in together(tmp_path, *SIX_STEPS, FSDP)
    assert_close(tmp_path, alone)


def test_continued_with_the_other_strategy(tmp_path: Path, alone: Path) -> None:
    together(tmp_path, *HALF, FSDP)
    assert "continuing after step 3" in together(tmp_path, *SIX_STEPS, "trainer.strategy=ddp")
    assert_close(tmp_path, alone)


def test_an_interrupted_run_equals_an_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    """With what has a random state or acts on several processes: drop path, clipping, micro-batches."""
    options = (FSDP, "model.drop_path=0.1", "trainer.clip_grad=0.5", "trainer.accumulate=2",
               "trainer.activation_checkpointing=true", "trainer.precision=bf16")  # fmt: skip
    for home, lengths in (("undisturbed", [SIX_STEPS]), ("interrupted", [HALF, SIX_STEPS])):
        (tmp_path / home).mkdir()
        for length in lengths:
            together(tmp_path / home, *length, *options)
    assert losses(tmp_path / "interrupted" / "runs" / "six") == losses(tmp_path / "undisturbed" / "runs" / "six")
    interrupted, undisturbed = (checkpoint(tmp_path / home) for home in ("interrupted", "undisturbed"))
    for part in ("model", "ema"):
        assert_same_bits(interrupted[part], undisturbed[part], part)


def test_evaluators_and_targets_of_shared_weights(tmp_path: Path) -> None:
    """The pictures are drawn by one process, k-NN has an odd number of batches, and the target is the average."""
    options = (*SMALL, "evaluators=[knn,linear,pictures]", "task.evaluators.knn.batch_size=100", "target=ema",
               "semantic_map=self", "trainer.max_steps=2", "run_name=six")  # fmt: skip
    found = {}
    for strategy in ("ddp", "fsdp"):
        (tmp_path / strategy).mkdir()
        together(tmp_path / strategy, *options, f"trainer.strategy={strategy}")
        lines = [each["metrics"] for each in journal(tmp_path / strategy / "runs" / "six") if "metrics" in each]
        found[strategy] = {
            (number, name): value
            for number, metrics in enumerate(lines)
            for name, value in metrics.items()
            if name.startswith(("online/", "order/", "train/loss", "train/grad_norm"))
        }
        assert (tmp_path / strategy / "runs" / "six" / "pictures" / "step_00000002.png").exists()
    assert len(found["ddp"]) > 20
    assert found["fsdp"] == pytest.approx(found["ddp"], rel=1e-5)


def test_fine_tuning_with_shared_weights(tmp_path: Path, alone: Path) -> None:
    options = ("task=finetune", f"checkpoint={alone / 'runs' / 'six'}", "tracking=none", "trainer.max_steps=3",
               "trainer.log_every_steps=1", "trainer.ema=true", "run_name=six",
               "trainer.activation_checkpointing=true")  # fmt: skip
    for strategy in ("ddp", "fsdp"):
        (tmp_path / strategy).mkdir()
        together(tmp_path / strategy, *options, f"trainer.strategy={strategy}")
    ddp, fsdp = (losses(tmp_path / strategy / "runs" / "six") for strategy in ("ddp", "fsdp"))
    assert fsdp == pytest.approx(ddp, rel=1e-6)
    best = [tmp_path / strategy / "runs" / "six" / "best" / "step_00000003.pt" for strategy in ("ddp", "fsdp")]
    theirs, ours = (torch.load(path, weights_only=True)["model"] for path in best)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-5, msg=name)


# Refusals


def test_a_map_in_full_precision_needs_whole_weights(tmp_path: Path) -> None:
    options = (FSDP, "semantic_map.full_precision=true", "trainer.precision=bf16")
    with pytest.raises(AssertionError, match=r"choose trainer\.strategy=ddp or trainer\.precision=float32"):
        together(tmp_path, *SIX_STEPS, *options)
    assert not (tmp_path / "runs").exists()


def test_a_linear_probe_has_little_to_share(tmp_path: Path, alone: Path) -> None:
    done = run(tmp_path, "task=linprobe", f"checkpoint={alone / 'runs' / 'six'}", FSDP)
    assert done.returncode == 2
    assert "leave trainer.strategy=ddp" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_former_name_of_activation_checkpointing(tmp_path: Path) -> None:
    done = run(tmp_path, "model.activation_checkpointing=true")
    assert done.returncode == 2
    assert "It is trainer.activation_checkpointing now" in done.stdout
