"""Jobs by their own name, signals while they start, and folders with any name, each disturbed on a real cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from support.at_once import AtOnce, chosen, on_cluster
from support.commands import losses, status
from support.slurm import Cluster
from support.slurm_runs import CAREFUL, ON_CPU, JobRun, on_two_nodes
from support.waiting import wait_for

pytestmark = pytest.mark.slow
FORTY = (*CAREFUL, "trainer.max_steps=40", "trainer.save_every_steps=5", "tracking=none")
STRANGE = """a b'c"d $HOME `id` \\n 5%j%a é #;&("""


def _array(cluster: Cluster, home: Path, name: str, *more: str) -> list[JobRun]:
    """Three tasks of an array, of which the last one has the number of the array as its SLURM_JOB_ID."""
    overrides = (*FORTY, *ON_CPU, "seed=0,1,2", f"run_name={name}_${{seed}}", *more)
    tasks = [JobRun(cluster, home, f"{name}_{task}", overrides, 1, name, task) for task in range(3)]
    tasks[0].submit(seconds_per_step=0.4)
    return tasks


def _kill_and_requeue(*tasks: JobRun) -> None:
    """Kill the process of each, and when it works again, requeue it."""
    for task in tasks:
        task.wait_for_step(3)
        os.kill(task.process(), signal.SIGKILL)
    for task in tasks:
        task.continue_now(1)
    for task in tasks:
        task.wait_for_step(task.step() + 3)
        task.cluster.requeue(task.job)
    for task in tasks:
        task.continue_now(2)


def _assert_finished_once(tasks: list[JobRun], *restarts: int) -> None:
    for task in tasks:
        task.finish()
        assert list(losses(task.folder)) == list(range(1, 41)), "no step is missing or stands twice"
    assert tuple(task.starts() for task in tasks) == restarts


def _tasks_of_an_array(cluster: Cluster, home: Path) -> None:
    first, middle, last = _array(cluster, home, "together")
    last.pace(2)
    _kill_and_requeue(first, middle)
    assert last.starts() == 0
    _kill_and_requeue(last)
    _assert_finished_once([first, middle, last], 2, 2, 2)


def _tasks_in_turn(cluster: Cluster, home: Path) -> None:
    """One after the other: the next one is held until the one before is finished."""
    tasks = _array(cluster, home, "in_turn", "hydra.launcher.array_parallelism=1")
    for task in tasks[1:]:
        cluster.run("scontrol", "hold", task.job)
    for number, task in enumerate(tasks):
        if number:
            cluster.run("scontrol", "release", task.job)
        _kill_and_requeue(task)
        task.finish()
        assert [each.starts() for each in tasks] == [2] * (number + 1) + [0] * (2 - number)
    _assert_finished_once(tasks, 2, 2, 2)


def _signals_while_it_starts(cluster: Cluster, home: Path) -> None:
    """On two nodes, of which the second one hears the signal a moment later; the shell of the job hears it, too."""
    run = on_two_nodes(cluster, home, "early", "tracking=mlflow", "trainer.max_steps=20")
    run.submit(seconds_per_step=0.2)
    for number, delay in enumerate((0.0, 0.7, 2.0, 4.0), start=1):
        wait_for(lambda: _has_process(run), lambda: f"a process: {run}", every=0.02)
        time.sleep(delay)
        run.signal(signal.SIGUSR2, *(["--full"] if number % 2 else []))
        run.continue_now(number)
    run.wait_for_step(1)
    run.finish()
    assert run.starts() == 4
    assert not (run.job_folder / "deaths").exists(), run
    assert list(losses(run.folder)) == list(range(1, 21))


def _has_process(run: JobRun) -> bool:
    with suppress(AssertionError):
        return run.process() > 0
    return False


def _strange_folders(cluster: Cluster, home: Path) -> None:
    """A killed process is found and its job restarted, although the path of its log file has special characters."""
    home = home / STRANGE
    home.mkdir()
    comment = r"""+hydra.launcher.additional_parameters.comment='a "b" %j \\n $c'"""
    run = JobRun(cluster, home, "-x %j", (*FORTY, *ON_CPU, comment))
    run.submit(seconds_per_step=0.3)
    run.wait_for_step(6)
    assert run.printed()
    os.kill(run.process(), signal.SIGKILL)
    run.continue_now(1)
    run.finish()
    assert run.continuations() == [5]
    assert "Killed" in (run.job_folder / "deaths").read_text()
    assert not [path.name for path in home.parent.iterdir() if path.name.startswith("a b") and path != home]
    folders = {path.name for path in (home / "runs").iterdir() if path.is_dir() and not path.is_symlink()}
    assert folders == {"-x %j", "sweep_-x %j"}
    assert "semaim-" not in run.run_semaim("semaim", "ls"), "links to the folders of jobs are no runs"
    assert "finished" in run.run_semaim("semaim", "status", str(run.sweep))


SCENARIOS = {
    "first, middle and last task": _tasks_of_an_array,
    "one task after the other": _tasks_in_turn,
    "signals while it starts": _signals_while_it_starts,
    "strange folders": _strange_folders,
}


@pytest.fixture(scope="module")
def at_once(
    request: pytest.FixtureRequest, cluster_of_file: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AtOnce]:
    """The selected scenarios, running concurrently."""
    home = tmp_path_factory.mktemp("hard")
    scenarios = {name: partial(SCENARIOS[name], cluster_of_file, home) for name in chosen(request, SCENARIOS)}
    with on_cluster(cluster_of_file, scenarios) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hard_jobs_finish_with_every_step_once(at_once: AtOnce, scenario: str) -> None:
    at_once.result(scenario)


def test_a_lost_node_whose_process_still_works_hands_the_run_over(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM starts the job again on another node; the process on the lost one ends before the other one writes."""
    run = JobRun(cluster, tmp_path, "lost", (*FORTY, *ON_CPU))
    run.submit(seconds_per_step=0.5)
    run.wait_for_step(7)
    node, old = run.cluster.job(run.job)["NodeList"], run.process()
    os.kill(old, signal.SIGSTOP)  # it answers late
    os.kill(int((cluster.folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    run.continue_now(1)
    wait_for(
        lambda: "leave the run folder" in run.run_semaim("semaim", "status", str(run.sweep)),
        lambda: f"a process that waits: {run}",
        every=0.5,
    )
    os.kill(old, signal.SIGCONT)
    run.finish()
    assert run.starts() == 1
    assert "now: this process writes no more to it and ends" in run.printed()
    assert list(losses(run.folder)) == list(range(1, 41))
    assert status(run.folder)["restarts"] == 1
    cluster.resume(node)
