"""Several processes give the result of one: same images, same orders, same losses up to rounding.

torchrun or the test itself starts them on this machine; they exchange gradients by gloo.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from semaim.core import distributed
from support.commands import ENVIRONMENT, SMALL, losses, run, succeed, sweep_folder, together
from support.evaluating import assert_same_bits
from support.one_sided import FAILING, ONE_SIDED
from support.paced import import_path
from support.six_steps import SIX_STEPS, assert_close, checkpoint

TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "semaim.run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of one process with the whole batch, executed in the folder returned."""
    folder = tmp_path_factory.mktemp("alone")
    succeed(folder, *SIX_STEPS)
    return folder


def test_two_processes_give_the_losses_of_one(tmp_path: Path, alone: Path) -> None:
    out = succeed(tmp_path, *SIX_STEPS, launcher=TWO)
    assert "(1 x 8 on each of 2 processes)" in out
    assert out.count("finished in") == 1, "only the first process speaks"
    assert_close(tmp_path, alone)


def test_two_processes_with_two_micro_batches_give_the_losses_of_one(tmp_path: Path, alone: Path) -> None:
    together(tmp_path, *SIX_STEPS, "trainer.accumulate=2")
    assert_close(tmp_path, alone)


def test_a_run_of_two_processes_continues_on_one(tmp_path: Path, alone: Path) -> None:
    together(tmp_path, *SIX_STEPS, "trainer.max_steps=3")
    out = succeed(tmp_path, *SIX_STEPS)
    assert "continuing after step 3" in out
    assert "the checkpoint is of 2 processes, now there are 1" in out
    assert_close(tmp_path, alone)


@pytest.mark.slow
def test_a_run_of_four_processes_that_was_interrupted_equals_an_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    """The order of adding more than two terms must not depend on the number of steps since the start."""
    options = (*SIX_STEPS, "model.drop_path=0.1", "trainer.ema=true")
    for home, steps in (("undisturbed", [6]), ("interrupted", [3, 6])):
        (tmp_path / home).mkdir()
        for last in steps:
            together(tmp_path / home, *options, f"trainer.max_steps={last}", processes=4)
    assert losses(tmp_path / "interrupted" / "runs" / "six") == losses(tmp_path / "undisturbed" / "runs" / "six")
    assert_same_bits(
        checkpoint(tmp_path / "interrupted")["model"], checkpoint(tmp_path / "undisturbed")["model"], "weights"
    )


def test_two_processes_extract_the_features_of_one(tmp_path: Path, alone: Path) -> None:
    evaluate = ("task=knn", f"checkpoint={alone / 'runs' / 'six'}", "tracking=none", "run_name=knn")
    succeed(tmp_path, *evaluate)
    (tmp_path / "two").mkdir()
    together(tmp_path / "two", *evaluate)
    results = [(folder / "runs" / "knn" / "status.json").read_text() for folder in (tmp_path, tmp_path / "two")]
    one, two = (json.loads(text)["result"] for text in results)
    assert one == two
    assert set(one) == {
        f"knn_{k}_{kind}{metric}" for k in (10, 20, 30) for kind in ("cls", "mean") for metric in ("", "_top5")
    }


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, *SIX_STEPS, "trainer.batch_size=15", launcher=TWO)
    assert done.returncode != 0
    assert "trainer.batch_size=15 must be divisible by processes x trainer.accumulate = 2 x 1" in done.stdout


# Sweeps: one run after the other in the same processes


def states_of(home: Path) -> list[str]:
    with open(sweep_folder(home) / "results.csv", newline="") as file:
        return [row["state"] for row in csv.DictReader(file)]


def test_a_sweep_of_ten_runs_on_two_processes(tmp_path: Path) -> None:
    options = (*SMALL, "trainer.max_steps=1", "sweep.check=false")
    out = succeed(tmp_path, "-m", "seed=0,1,2,3,4,5,6,7,8,9", *options, launcher=TWO)
    assert states_of(tmp_path) == ["finished"] * 10
    assert out.count("on each of 2 processes") == 10


def test_a_failed_run_of_a_sweep_on_two_processes_does_not_affect_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run fails on one process while the other waits for it, the fourth on both."""
    for name, value in import_path().items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    shares = f"data.source.val_fraction=0.2,{FAILING},0.25,0.999,0.15"
    options = (*SMALL, *ONE_SIDED, "trainer.max_steps=3", "sweep.check=false")
    began = time.monotonic()
    done = run(tmp_path, "-m", shares, *options, launcher=TWO)
    assert done.returncode == 1, done.stdout
    assert time.monotonic() - began < distributed.TIMEOUT.total_seconds(), "the waiting process learns it at once"
    assert states_of(tmp_path) == ["finished", "failed", "finished", "failed", "finished"], done.stdout
    assert "RuntimeError: no labels on the second process" in done.stdout
    assert "another process of this run has ended" in done.stdout
    assert "error: 2 of 5 runs did not finish" in done.stdout


@pytest.mark.parametrize(("set_by_hand", "threads"), [(None, 3), ("2", 5)])
def test_a_job_has_as_many_threads_as_cpus(
    set_by_hand: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_hand is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_hand)  # torch read the variable at import
    try:
        torch.set_num_threads(5)
        distributed.start("cpu", Path("runs"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
