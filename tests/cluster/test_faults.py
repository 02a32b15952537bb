"""Jobs of a real SLURM are ended in every way there is, and their runs equal undisturbed ones to the last bit.

Two nodes on this machine (see one_machine_slurm.sh). A job spends seconds with importing torch, so each test disturbs
several runs side by side.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from support.commands import SMALL, losses, status
from support.slurm import Cluster
from support.slurm_runs import CAREFUL, ON_CPU, TWO_BY_TWO, JobRun, on_node, run_here, side_by_side
from support.undisturbed import assert_nothing_lost, assert_shown_once, final_state, shown

pytestmark = pytest.mark.slow
SIXTY = (*CAREFUL, "trainer.max_steps=60", "trainer.save_every_steps=5")
FIFTY_PLAIN = (*SMALL, "trainer.max_steps=50")
MLFLOW_MUST_KNOW_WITHIN = 60.0  # seconds


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an undisturbed run of one process, without any cluster."""
    home = tmp_path_factory.mktemp("undisturbed")
    run_here(home, *SIXTY, "tracking=none", "run_name=sixty")
    return home / "runs" / "sixty"


def two_by_two(cluster: Cluster, home: Path, name: str, *more: str) -> JobRun:
    """Sixty steps on two nodes with two processes each."""
    return JobRun(cluster, home, name, (*SIXTY, *TWO_BY_TWO, *more), processes=4)


# One process


def test_limits_requeues_and_an_urgent_job_cost_one_process_nothing(
    cluster: Cluster, tmp_path: Path, sixty: Path
) -> None:
    side_by_side(
        cluster,
        partial(_hits_its_limit_twice, cluster, tmp_path, sixty),
        partial(_times_out_too_often, cluster, tmp_path, sixty),
        partial(_is_requeued_and_pushed_aside, cluster, tmp_path, sixty),
    )


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
    told = run.say("semaim.sweeps.status", str(run.sweep), expect=1)
    assert "killed" in told
    assert "hydra.launcher.max_num_timeout" in told
    run_id = assert_shown_once(run.folder, home, "KILLED")
    run.say("semaim.sweeps.retry", "--failed", str(run.sweep), "max_num_timeout=1")
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


# Four processes


def test_signals_and_a_killed_process_cost_two_nodes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    reference = two_by_two(cluster, tmp_path, "undisturbed", "tracking=none")
    signalled, ended, _ = side_by_side(
        cluster,
        partial(_is_told_of_its_limit_five_times, cluster, tmp_path),
        partial(_loses_a_process, cluster, tmp_path),
        lambda: (reference.submit(), reference.finish(240)),
    )
    assert_nothing_lost(signalled.folder, reference.folder)
    assert_nothing_lost(ended.folder, reference.folder)


def _is_told_of_its_limit_five_times(cluster: Cluster, home: Path) -> JobRun:
    run = two_by_two(cluster, home, "signalled", "tracking=none")
    run.submit(seconds_per_step=0.3)
    dice = random.Random(1)
    for number in range(1, 6):
        step = run.step() + dice.randint(1, 5)
        run.wait_for_step(step, 120)
        print(f"signal {number} after step {step} or a little later")
        run.signal(signal.SIGUSR2)
        run.continue_now(number)
    run.finish()
    assert run.starts() == 5
    assert len(run.stops()) == 5
    assert run.stops() == run.continuations(), "no step was done twice"
    return run


def _loses_a_process(cluster: Cluster, home: Path) -> JobRun:
    dice = random.Random(2)
    run = two_by_two(cluster, home, "bereaved", "tracking=none")
    run.submit(seconds_per_step=0.3)
    rank, step = dice.randrange(4), dice.randint(6, 9)
    run.wait_for_step(step, 240)
    os.kill(run.process(rank), signal.SIGKILL)
    run.wait_for_requeue(1)
    assert f"task {rank}: Killed" in (run.job_folder / "deaths").read_text()
    told = run.say("semaim.sweeps.status", str(run.sweep))
    assert "requeued 1 time" in told
    assert f"task {rank}: Killed" in told
    run.continue_now(1)
    run.finish()
    assert run.starts() == 1
    assert run.continuations() == [5]
    return run


def test_two_nodes_agree_with_one_process_although_ports_are_taken(cluster: Cluster, tmp_path: Path) -> None:
    """Measured: see the assertions. float32 adds up in another order."""
    run_here(tmp_path, *FIFTY_PLAIN, "run_name=one")
    run = JobRun(cluster, tmp_path, "four", (*FIFTY_PLAIN, *TWO_BY_TWO), processes=4)
    with ExitStack() as taken:
        _take(taken, random.Random(run.submit()).randint(20_000, 60_000))  # what submitit would agree on
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
    """Occupy a port, unless somebody else does."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        server = taken.enter_context(socket.socket(family))
        try:
            server.bind((address, port))
            server.listen()
        except OSError:
            continue
    return


def test_without_restarts_the_death_of_a_process_ends_the_run_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    run = two_by_two(cluster, tmp_path, "lost", "tracking=mlflow", "sweep.restarts=0")
    run.submit(seconds_per_step=0.3)
    run.wait_for_step(2, 120)
    os.kill(run.process(3), signal.SIGKILL)
    killed = time.monotonic()
    run.wait_until_over()
    asked = time.monotonic()
    told = run.say("semaim.sweeps.status", str(run.sweep), expect=1)
    state = shown(tmp_path)["lost"][1]
    known = time.monotonic()
    print(
        f"the job ended {asked - killed:.1f} s after the kill; MLflow said {state} {known - asked:.1f} s after asking"
    )
    assert "failed" in told
    assert "task 3: Killed" in told
    assert state in ("FAILED", "KILLED")
    assert known - asked < MLFLOW_MUST_KNOW_WITHIN
    assert status(run.folder)["state"] in ("failed", "vanished")
    assert run.starts() == 0
