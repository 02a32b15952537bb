"""Jobs on two nodes agree with one process; without restarts, the death of a process ends the run."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.commands import SMALL, losses, status
from support.slurm import Cluster
from support.slurm_runs import TWO_BY_TWO, JobRun, on_two_nodes, run_here
from support.undisturbed import final_state, shown

pytestmark = pytest.mark.slow
FIFTY_PLAIN = (*SMALL, "trainer.max_steps=50")
MLFLOW_MUST_KNOW_WITHIN = 60.0  # seconds


def test_two_nodes_agree_with_one_process_although_ports_are_taken(cluster: Cluster, tmp_path: Path) -> None:
    """Tolerances: see the assertions. The order of float32 additions differs."""
    run_here(tmp_path, *FIFTY_PLAIN, "run_name=one")
    run = JobRun(cluster, tmp_path, "four", (*FIFTY_PLAIN, *TWO_BY_TWO), processes=4)
    with ExitStack() as taken:
        _take(taken, random.Random(run.submit()).randint(20_000, 60_000))  # the port that submitit would choose
        dice = random.Random(3)
        while len(taken._exit_callbacks) < 200:  # type: ignore[attr-defined]
            _take(taken, dice.randint(20_000, 60_000))
        run.finish(180)
    one, four = losses(tmp_path / "runs" / "one"), losses(run.folder)
    assert list(four) == list(range(1, 51))
    worst = max(abs(four[step] - loss) / loss for step, loss in one.items())
    distance, size = 0.0, 0.0
    other = final_state(run.folder)["model"]
    for name, weight in final_state(tmp_path / "runs" / "one")["model"].items():
        distance += float((other[name] - weight).double().square().sum())
        size += float(weight.double().square().sum())
    print(f"largest relative difference of losses {worst:.1e}; of the weights {(distance / size) ** 0.5:.1e}")
    assert worst < 1e-4
    assert (distance / size) ** 0.5 < 1e-4


def _take(taken: ExitStack, port: int) -> None:
    """Occupy a port, unless it is in use already."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        server = taken.enter_context(socket.socket(family))
        try:
            server.bind((address, port))
            server.listen()
        except OSError:
            continue
    return


def test_without_restarts_the_death_of_a_process_ends_the_run_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    run = on_two_nodes(cluster, tmp_path, "lost", "tracking=mlflow", "sweep.restarts=0")
    run.submit(seconds_per_step=0.3)
    run.wait_for_step(2, 120)
    os.kill(run.process(1), signal.SIGKILL)
    killed = time.monotonic()
    run.wait_until_over()
    asked = time.monotonic()
    told = run.run_semaim("semaim", "status", str(run.sweep), expect=1)
    state = shown(tmp_path)["lost"][1]
    known = time.monotonic()
    print(
        f"the job ended {asked - killed:.1f} s after the kill; MLflow said {state} {known - asked:.1f} s after asking"
    )
    assert "failed" in told
    assert "task 1: Killed" in told
    assert state in ("FAILED", "KILLED")
    assert known - asked < MLFLOW_MUST_KNOW_WITHIN
    assert status(run.folder)["state"] in ("failed", "vanished")
    assert run.starts() == 0
