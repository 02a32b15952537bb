"""Jobs of one process meet limits, requeues and an urgent job, and their runs equal undisturbed ones to the last bit.

A job spends seconds with importing torch, so several runs are disturbed side by side.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.at_once import AtOnce, chosen
from support.commands import status
from support.slurm import Cluster
from support.slurm_runs import ON_CPU, SIXTY, JobRun, on_node, run_here
from support.undisturbed import assert_nothing_lost, assert_shown_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an undisturbed run of one process, without any cluster."""
    home = tmp_path_factory.mktemp("undisturbed")
    run_here(home, *SIXTY, "tracking=none", "run_name=sixty")
    return home / "runs" / "sixty"


def _hits_its_limit_twice(cluster: Cluster, home: Path, undisturbed: Path) -> None:
    # SLURM looks every 30 s, and then signals up to 30 s early: with 8 s, 22 to 52 s after the start.
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=8", "hydra.launcher.max_num_timeout=9")
    run = JobRun(cluster, home, "limited", (*SIXTY, *ON_CPU, *limit, *on_node("n1"), "tracking=none"))
    run.submit(seconds_per_step=2)
    for number in (1, 2):
        run.continue_now(number, seconds=150)
    run.finish(300)  # on a busy machine it may meet its limit once more
    assert run.starts() >= 2
    assert run.printed().count("Job has timed out.") == len(run.stops()) == run.starts()
    assert run.stops() == run.continuations(), "no step was done twice"
    assert_nothing_lost(run.folder, undisturbed)


def _times_out_too_often(cluster: Cluster, home: Path, undisturbed: Path) -> None:
    limit = ("hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=20", "hydra.launcher.max_num_timeout=0")
    run = JobRun(cluster, home, "exhausted", (*SIXTY, *ON_CPU, *limit, *on_node("n1"), "tracking=mlflow"))
    first = run.submit(seconds_per_step=0.3)
    run.wait_for_step(3)
    run.signal(signal.SIGUSR2)
    run.wait_until_over()
    assert run.starts() == 0
    stopped = run.stops()
    told = run.say("semaim", "status", str(run.sweep), expect=1)
    assert "killed" in told
    assert "hydra.launcher.max_num_timeout" in told
    run_id = assert_shown_once(run.folder, home, "KILLED")
    run.say("semaim", "retry", "--failed", str(run.sweep), "max_num_timeout=1")
    assert run.job != first
    run.wait_for_step(run.step() + 1)
    run.signal(signal.SIGUSR2)
    run.continue_now(1)
    run.finish()
    assert run.stops() == run.continuations()
    assert run.stops()[:1] == stopped
    assert_nothing_lost(run.folder, undisturbed)
    assert assert_shown_once(run.folder, home, "FINISHED") == run_id


def _is_requeued_and_pushed_aside(cluster: Cluster, home: Path, undisturbed: Path) -> None:
    options = (*SIXTY, *ON_CPU, *on_node("n2"), "tracking=none", "data.num_workers=2")
    run = JobRun(cluster, home, "requeued", options)
    run.submit(seconds_per_step=0.3)
    dice = random.Random(0)
    for number in range(1, 6):
        if number in (2, 4):  # at any moment, also while it starts
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
    cluster.wait_for_state(urgent, "RUNNING", "COMPLETED", seconds=60)
    assert run.starts() == 6
    run.continue_now(6)
    run.finish()
    assert run.starts() == 6
    assert len(run.stops()) >= 4
    assert run.stops() == run.continuations(), "no step was done twice"
    assert_nothing_lost(run.folder, undisturbed)
    _shows_its_result_again(cluster, run)


def _shows_its_result_again(cluster: Cluster, run: JobRun) -> None:
    before = (run.folder / "metrics.jsonl").read_bytes()
    job = run.job
    cluster.requeue(job)
    run.continue_now(7)
    run.finish()
    assert "this run is finished already" in run.printed()
    assert f"  loss  {status(run.folder)['result']['loss']:.4g}" in run.printed().split("finished already")[-1]
    told = run.say("semaim.run", *run.overrides, "sweep.check=false", f"run_name={run.name}")
    assert "1 of 1 runs are finished" in told
    assert run.job == job, "nothing was submitted"
    assert (run.folder / "metrics.jsonl").read_bytes() == before


SCENARIOS = {
    "limit met twice": _hits_its_limit_twice,
    "limit met too often": _times_out_too_often,
    "requeued and pushed aside": _is_requeued_and_pushed_aside,
}


@pytest.fixture(scope="module")
def at_once(
    request: pytest.FixtureRequest, cluster_of_file: Cluster, tmp_path_factory: pytest.TempPathFactory, sixty: Path
) -> Iterator[AtOnce]:
    """The scenarios that were asked for, all under way."""
    home = tmp_path_factory.mktemp("disturbed")
    names = chosen(request, SCENARIOS)
    scenarios = AtOnce({name: partial(SCENARIOS[name], cluster_of_file, home, sixty) for name in names})
    try:
        yield scenarios
    finally:
        cluster_of_file.cancel_all()  # which those that still wait notice
        scenarios.wait()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_limits_requeues_and_an_urgent_job_cost_one_process_nothing(at_once: AtOnce, scenario: str) -> None:
    at_once.result(scenario)
