"""Runs killed at random moments, often during a save, are bit-identical to an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from support.at_once import AtOnce, chosen, on_cluster
from support.commands import SMALL, started
from support.slurm import Cluster
from support.slurm_runs import ON_CPU, JobRun, run_here
from support.undisturbed import assert_nothing_lost
from support.waiting import wait_for

pytestmark = pytest.mark.slow
# A checkpoint of 60 MB after every step, so that kills during a save are frequent.
LARGE = (
    *(option for option in SMALL if not option.startswith("model.")),
    "model.embed_dim=192",
    "model.num_heads=2",
    "model.drop_path=0.1",
    "trainer.ema=true",
    "trainer.max_steps=30",
    "trainer.save_every_steps=1",
    "data.num_workers=1",
)


def _ten_kills(cluster: Cluster, home: Path, seed: int) -> int:
    """Number of kills that hit a save."""
    dice = random.Random(seed)
    run = JobRun(cluster, home, f"killed{seed}", (*LARGE, *ON_CPU))
    met = 0
    for number in range(1, 10):
        with started(home, *LARGE, f"run_name={run.name}") as process:
            _wait_for_random_moment(run, dice, in_a_save=number % 2 == 0)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        assert process.returncode == -signal.SIGKILL
        met += _has_partial_save(run)
        print(f"{run.name}: kill {number}, at step {run.step()}, {'in a save' if _has_partial_save(run) else ''}")
        _assert_continues_at_interrupted_step(run, number)
    run.submit()
    _wait_for_random_moment(run, dice, in_a_save=True)
    os.kill(run.process(), signal.SIGKILL)
    run.wait_for_requeue(1)
    met += _has_partial_save(run)
    assert "0: Killed" in (run.job_folder / "deaths").read_text()
    run.continue_now(1)
    run.finish()
    return met


def _wait_for_random_moment(run: JobRun, dice: random.Random, in_a_save: bool) -> None:
    step = run.step() + dice.randint(1, 2)
    wait_for(lambda: run.step() >= step, f"step {step} of {run.name}", every=0.02)
    if in_a_save:
        wait_for(lambda: _has_partial_save(run), f"a save of {run.name}", every=0.005)
    time.sleep(dice.uniform(0, 0.05 if in_a_save else 0.5))


def _has_partial_save(run: JobRun) -> bool:
    """A process killed during a save leaves a file with this name."""
    return any(name.endswith(".tmp") for name in os.listdir(run.folder / "checkpoints"))


def _assert_continues_at_interrupted_step(run: JobRun, number: int) -> None:
    """At most the step whose checkpoint was incomplete is repeated."""
    assert len(run.continuations()) >= number - 1
    complete = sorted((run.folder / "checkpoints").glob("step_*.pt"))
    newest = torch.load(complete[-1], weights_only=True)["step"] if complete else 0
    assert newest in (run.step() - 1, run.step())


SCENARIOS = {f"seed{seed}": partial(_ten_kills, seed=seed) for seed in (0, 1)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with an undisturbed run."""
    home = tmp_path_factory.mktemp("kills")
    run_here(home, *LARGE, "run_name=undisturbed")
    return home


@pytest.fixture(scope="module")
def at_once(request: pytest.FixtureRequest, cluster_of_file: Cluster, home: Path) -> Iterator[AtOnce]:
    """The selected runs, running concurrently."""
    names = chosen(request, SCENARIOS)
    scenarios = {name: partial(SCENARIOS[name], cluster_of_file, home) for name in names}
    with on_cluster(cluster_of_file, scenarios) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ten_kills_lose_nothing(at_once: AtOnce, home: Path, scenario: str) -> None:
    """The last kill happens inside a job."""
    met = at_once.result(scenario)
    print(f"kills while a checkpoint was being saved: {met}")
    assert_nothing_lost(home / "runs" / f"killed{scenario.removeprefix('seed')}", home / "runs" / "undisturbed")


def test_twenty_kills_many_while_a_checkpoint_is_saved(at_once: AtOnce) -> None:
    assert sum(at_once.result(scenario) for scenario in SCENARIOS) >= 5
