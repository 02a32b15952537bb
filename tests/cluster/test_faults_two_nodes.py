"""Jobs on two nodes with signals and a lost process: the runs are bit-identical to undisturbed ones.

Importing torch takes seconds per job, so several runs are disturbed in parallel.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.at_once import AtOnce, chosen, on_cluster
from support.slurm import Cluster
from support.slurm_runs import JobRun, on_two_nodes
from support.undisturbed import assert_nothing_lost

pytestmark = pytest.mark.slow


def _five_time_limit_signals(cluster: Cluster, home: Path) -> JobRun:
    run = on_two_nodes(cluster, home, "signalled", "tracking=none")
    run.submit(seconds_per_step=0.3)
    dice = random.Random(1)
    for number in range(1, 6):
        step = run.step() + dice.randint(1, 5)
        run.wait_for_step(step, 120)
        print(f"signal {number} after step {step} or a little later")
        run.signal(signal.SIGUSR2)
        run.continue_now(number, 240)
    run.finish()
    assert run.starts() == 5
    assert len(run.stops()) == 5
    run.assert_every_step_once()
    return run


def _one_killed_process(cluster: Cluster, home: Path) -> JobRun:
    dice = random.Random(2)
    run = on_two_nodes(cluster, home, "bereaved", "tracking=none")
    run.submit(seconds_per_step=0.3)
    rank, step = dice.randrange(2), dice.randint(6, 9)
    run.wait_for_step(step, 240)
    os.kill(run.process(rank), signal.SIGKILL)
    run.wait_for_requeue(1)
    assert f"task {rank}: Killed" in (run.job_folder / "deaths").read_text()
    told = run.run_semaim("semaim", "status", str(run.sweep))
    assert "requeued 1 time" in told
    assert f"task {rank}: Killed" in told
    run.continue_now(1, 240)
    run.finish()
    assert run.starts() == 1
    assert run.continuations() == [5]
    return run


def _undisturbed_run(cluster: Cluster, home: Path) -> JobRun:
    run = on_two_nodes(cluster, home, "undisturbed", "tracking=none")
    run.submit()
    run.finish(240)
    return run


SCENARIOS = {"signalled": _five_time_limit_signals, "bereaved": _one_killed_process}


@pytest.fixture(scope="module")
def at_once(
    request: pytest.FixtureRequest, cluster_of_file: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AtOnce]:
    """The selected scenarios and an undisturbed run, running concurrently."""
    home = tmp_path_factory.mktemp("disturbed")
    all_of_them = {name: SCENARIOS[name] for name in chosen(request, SCENARIOS)} | {"undisturbed": _undisturbed_run}
    scenarios = {name: partial(scenario, cluster_of_file, home) for name, scenario in all_of_them.items()}
    with on_cluster(cluster_of_file, scenarios) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_nodes_survive_signals_and_a_killed_process(at_once: AtOnce, scenario: str) -> None:
    assert_nothing_lost(at_once.result(scenario).folder, at_once.result("undisturbed").folder)
