"""MAE, SimMIM and segments on two processes, which share weights or gradients: losses and weights are those of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from support.commands import SMALL, losses, succeed

TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "semaim.run")
SEGMENTS = "# A model of segments.\ndefaults: [aim_tiny, _self_]\nsegments: 5\nskip_connections: true\n"
MODELS = ("mae_tiny", "simmim_tiny", "segments")
# A sweep is one start of two processes for three models.
OPTIONS = ("-m", f"model={','.join(MODELS)}", *SMALL, "permutation=random_squares", "trainer.save_every_steps=3",
           "trainer.ema=true", "sweep.check=false", "--config-dir", "own")  # fmt: skip
FSDP = ("trainer.strategy=fsdp", "trainer.activation_checkpointing=true")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    (folder / "own" / "model").mkdir(parents=True)
    (folder / "own" / "model" / "segments.yaml").write_text(SEGMENTS)
    return folder


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """Runs of six steps on one process, in the folder returned."""
    succeed(home, *OPTIONS, "trainer.max_steps=6", "runs_dir=alone")
    return home / "alone"


def assert_close(runs: Path, alone: Path) -> None:
    for model in MODELS:
        (ours,), (theirs,) = (list(folder.glob(f"pretrain_digits_{model}_*")) for folder in (runs, alone))
        expected, found = losses(theirs), losses(ours)
        assert sorted(found) == [1, 2, 3, 4, 5, 6]
        assert found == pytest.approx(expected, rel=1e-6)
        states = [torch.load(run / "checkpoints" / "step_00000006.pt", weights_only=True) for run in (ours, theirs)]
        for part in ("model", "ema"):
            own, other = (state[part] for state in states)
            assert own.keys() == other.keys()
            for name, value in other.items():
                torch.testing.assert_close(own[name], value, rtol=0, atol=2e-5, msg=f"{model} {name}")


def test_two_processes_with_two_micro_batches_give_the_losses_of_one(home: Path, alone: Path) -> None:
    out = succeed(home, *OPTIONS, "trainer.max_steps=6", "runs_dir=ddp", "trainer.accumulate=2", launcher=TWO)
    assert out.count("(2 x 4 on each of 2 processes)") == 3
    assert_close(home / "ddp", alone)


def test_what_shares_weights_continues_with_copies(home: Path, alone: Path) -> None:
    """Saved with FSDP and activation checkpointing, continued with DDP."""
    succeed(home, *OPTIONS, *FSDP, "trainer.max_steps=3", "runs_dir=fsdp", launcher=TWO)
    out = succeed(home, *OPTIONS, "trainer.max_steps=6", "runs_dir=fsdp", launcher=TWO)
    assert out.count("continuing after step 3") == 3
    assert_close(home / "fsdp", alone)
