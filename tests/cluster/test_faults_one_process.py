"""Jobs of one process with time limits, requeues and preemption: the runs are bit-identical to undisturbed ones.

Importing torch takes seconds per job, so several runs are disturbed in parallel.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.at_once import AtOnce, chosen, on_cluster
from support.commands import status
from support.slurm import Cluster
from support.slurm_runs import ON_CPU, SIXTY, JobRun, on_node, run_here
from support.undisturbed import assert_nothing_lost, assert_shown_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an undisturbed run of one process, without a cluster."""
    home = tmp_path_factory.mktemp("undisturbed")
    run_here(home, *SIXTY, "tracking=none", "run_name=sixty")
    return home / "runs" / "sixty"


def _two_time_limits(cluster: Cluster, home: Path, undisturbed: Path) -> None:
    # SLURM checks limits every 30 s and signals up to 30 s early: with 8 s, 22 to 52 s after the start.
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=8", "hydra.launcher.max_num_timeout=9")
    run = JobRun(cluster, home, "limited", (*SIXTY, *ON_CPU, *limit, *on_node("n1"), "tracking=none"))
    run.submit(seconds_per_step=2)
    for number in (1, 2):
        run.continue_now(number)
    run.finish()  # on a busy machine it may reach its limit once more
    assert run.starts() >= 2
    assert run.printed().count("Job has timed out.") == len(run.stops()) == run.starts()
    run.assert_every_step_once()
    assert_nothing_lost(run.folder, undisturbed)


def _too_many_timeouts(cluster: Cluster, home: Path, undisturbed: Path) -> None:
    limit = ("hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=20", "hydra.launcher.max_num_timeout=0")
    run = JobRun(cluster, home, "exhausted", (*SIXTY, *ON_CPU, *limit, *on_node("n1"), "tracking=mlflow"))
    first = run.submit(seconds_per_step=0.3)
    run.wait_for_step(3)
    run.signal(signal.SIGUSR2)
    run.wait_until_over()
    assert run.starts() == 0
    stopped = run.stops()
    told = run.run_semaim("semaim", "status", str(run.sweep), expect=1)
    assert re.search(r"\nexhausted +\d+ +interrupted ", told)
    assert "hydra.launcher.max_num_timeout" in told
    run_id = assert_shown_once(run.folder, home, "KILLED")
    run.run_semaim("semaim", "retry", "--failed", str(run.sweep), "max_num_timeout=1")
    assert run.job != first
    run.wait_for_step(run.step() + 1)
    run.signal(signal.SIGUSR2)
    run.continue_now(1)
    run.finish()
    run.assert_every_step_once()
    assert run.stops()[:1] == stopped
    assert_nothing_lost(run.folder, undisturbed)
    assert assert_shown_once(run.folder, home, "FINISHED") == run_id


def _requeues_and_preemption(cluster: Cluster, home: Path, undisturbed: Path) -> None:
    options = (*SIXTY, *ON_CPU, *on_node("n2"), "tracking=none", "data.num_workers=2")
    run = JobRun(cluster, home, "requeued", options)
    run.submit(seconds_per_step=2)  # two loader workers: one second; it must not end before the last requeue
    dice = random.Random(0)
    for number in range(1, 6):
        if number in (2, 4):  # at any moment, also during startup
            run.wait_until_it_runs()
            delay = dice.uniform(0, 12)
            time.sleep(delay)
            print(f"requeue {number}, {delay:.1f} s after its start, at step {run.step()}")
        else:
            step = run.step() + dice.randint(1, 4)
            run.wait_for_step(step)
            print(f"requeue {number}, after step {step} or a little later")
        cluster.requeue(run.job)
        run.continue_now(number)
    run.wait_for_step(run.step() + 1)
    urgent = cluster.sbatch("-p", "urgent", "-w", "n2", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 1")
    cluster.wait_for_state(urgent, "RUNNING", "COMPLETED")
    assert run.starts() == 6
    run.continue_now(6)
    run.finish()
    assert run.starts() == 6
    assert len(run.stops()) >= 4
    run.assert_every_step_once()
    assert_nothing_lost(run.folder, undisturbed)
    _assert_result_repeated(cluster, run)


def _assert_result_repeated(cluster: Cluster, run: JobRun) -> None:
    before = (run.folder / "metrics.jsonl").read_bytes()
    job = run.job
    cluster.requeue(job)
    run.continue_now(7)
    run.finish()
    assert "this run is finished already" in run.printed()
    assert f"  loss  {status(run.folder)['result']['loss']:.4g}" in run.printed().split("finished already")[-1]
    told = run.run_semaim("semaim.run", *run.overrides, "sweep.check=false", f"run_name={run.name}")
    assert "already finished or under way: 1 of 1 run" in told
    assert run.job == job, "nothing was submitted"
    assert (run.folder / "metrics.jsonl").read_bytes() == before


SCENARIOS = {
    "limit met twice": _two_time_limits,
    "limit met too often": _too_many_timeouts,
    "requeued and pushed aside": _requeues_and_preemption,
}


@pytest.fixture(scope="module")
def at_once(
    request: pytest.FixtureRequest, cluster_of_file: Cluster, tmp_path_factory: pytest.TempPathFactory, sixty: Path
) -> Iterator[AtOnce]:
    """The selected scenarios, running concurrently."""
    home = tmp_path_factory.mktemp("disturbed")
    names = chosen(request, SCENARIOS)
    scenarios = {name: partial(SCENARIOS[name], cluster_of_file, home, sixty) for name in names}
    with on_cluster(cluster_of_file, scenarios) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_one_process_survives_limits_requeues_and_preemption(at_once: AtOnce, scenario: str) -> None:
    at_once.result(scenario)
