"""The job of a single run on a real SLURM: left alone, watched, cancelled, and tried again.

The tests follow one another: what is watched by the first ones is cancelled for the last ones.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.slurm import Cluster
from support.slurm_runs import LEFT_ALONE, JobRun, say
from support.undisturbed import shown

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are typed."""
    return tmp_path_factory.mktemp("one_run")


@pytest.fixture(scope="module")
def held(cluster_of_file: Cluster, home: Path) -> tuple[JobRun, str]:
    """A job that may start in an hour, and what the screen said when it was submitted."""
    later = "+hydra.launcher.additional_parameters.begin=now+1hour"
    said = say(cluster_of_file, home, "semaim.run", *LEFT_ALONE, "run_name=held", "trainer.max_steps=3", later)
    return JobRun(cluster_of_file, home, "held", ()), said


LONG = (*LEFT_ALONE, "run_name=long", "trainer.max_steps=1700")


@pytest.fixture(scope="module")
def under_way(cluster_of_file: Cluster, home: Path) -> JobRun:
    """A run of many steps, of which it has made 30."""
    say(cluster_of_file, home, "semaim.run", *LONG)
    run = JobRun(cluster_of_file, home, "long", ())
    run.wait_for_step(30)
    return run


@pytest.fixture(scope="module")
def cancelled(cluster_of_file: Cluster, home: Path, held: tuple[JobRun, str], under_way: JobRun) -> dict[str, str]:
    """What the screen said when each of both was cancelled, by name."""
    names = (under_way.name, held[0].name)
    return {name: say(cluster_of_file, home, "semaim", "cancel", f"runs/sweep_{name}") for name in names}


def test_a_job_that_waits_says_why(cluster_of_file: Cluster, home: Path, held: tuple[JobRun, str]) -> None:
    waits, said = held
    assert f"submitted 1 job (slurm {waits.job})" in said
    assert "semaim status --watch runs/sweep_held" in said
    told = say(cluster_of_file, home, "semaim", "status", "runs/sweep_held")
    assert re.search(r"\nheld +\d+ +pending +BeginTime", told)


@pytest.mark.parametrize("where", ["runs/sweep_long", "runs/long", "from another folder"])
def test_progress_is_shown(cluster_of_file: Cluster, home: Path, under_way: JobRun, tmp_path: Path, where: str) -> None:
    place, words = (tmp_path, str(under_way.sweep)) if where == "from another folder" else (home, where)
    told = say(cluster_of_file, place, "semaim", "status", words)
    assert re.search(r"\nlong +\d+ +running +step \d+/1700, [\d.e+]+ images/s, ETA .+", told)


def test_a_live_job_is_not_doubled(cluster_of_file: Cluster, home: Path, under_way: JobRun) -> None:
    first = under_way.job
    assert "1 of 1 runs are finished or under way" in say(cluster_of_file, home, "semaim.run", *LONG)
    assert under_way.job == first


@pytest.mark.parametrize(
    ("name", "detail"), [("long", "CANCELLED: stopped by SIGTERM after step"), ("held", "CANCELLED")]
)
def test_a_cancelled_job_is_said_to_be_killed(cancelled: dict[str, str], name: str, detail: str) -> None:
    assert re.search(rf"\n{name} +\d+ +killed +{detail}", cancelled[name])


@pytest.mark.usefixtures("cancelled")
def test_a_cancelled_run_is_tried_again_from_where_it_stopped(
    cluster_of_file: Cluster, home: Path, under_way: JobRun
) -> None:
    run, first = under_way, under_way.job
    assert shown(home)["long"][1] == "KILLED"
    stopped = run.stops()[-1]
    retry = ("semaim", "retry", "--failed", "runs/sweep_long")
    say(cluster_of_file, home, *retry, "timeout_min=60", "cpus_per_task=1")
    assert run.job != first
    run.wait_for_step(stopped + 1)
    assert run.continuations() == [stopped]
    said = say(cluster_of_file, home, *retry, "memory=3", expect=2)
    assert "there is no launcher option memory" in said
