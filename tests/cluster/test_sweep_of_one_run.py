"""The job of a single run on a real SLURM: pending, watched, cancelled and retried.

The tests depend on their order: the last tests cancel what the first ones watch.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.slurm import Cluster
from support.slurm_runs import LEFT_ALONE, JobRun, run_semaim
from support.undisturbed import shown

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of the commands."""
    return tmp_path_factory.mktemp("one_run")


@pytest.fixture(scope="module")
def held(cluster_of_file: Cluster, home: Path) -> tuple[JobRun, str]:
    """A job with a start time in one hour, and the output of its submission."""
    later = "+hydra.launcher.additional_parameters.begin=now+1hour"
    said = run_semaim(cluster_of_file, home, "semaim.run", *LEFT_ALONE, "run_name=held", "trainer.max_steps=3", later)
    return JobRun(cluster_of_file, home, "held", ()), said


LONG = (*LEFT_ALONE, "run_name=long", "trainer.max_steps=1700")


@pytest.fixture(scope="module")
def under_way(cluster_of_file: Cluster, home: Path) -> JobRun:
    """A run of many steps that has completed 30."""
    run_semaim(cluster_of_file, home, "semaim.run", *LONG)
    run = JobRun(cluster_of_file, home, "long", ())
    run.wait_for_step(30)
    return run


@pytest.fixture(scope="module")
def cancelled(cluster_of_file: Cluster, home: Path, held: tuple[JobRun, str], under_way: JobRun) -> dict[str, str]:
    """Output of cancelling each of the two, by name."""
    names = (under_way.name, held[0].name)
    return {name: run_semaim(cluster_of_file, home, "semaim", "cancel", f"runs/sweep_{name}") for name in names}


def test_a_pending_job_shows_its_reason(cluster_of_file: Cluster, home: Path, held: tuple[JobRun, str]) -> None:
    waits, said = held
    assert f"submitted 1 job (slurm {waits.job})" in said
    assert "semaim status --watch runs/sweep_held" in said
    told = run_semaim(cluster_of_file, home, "semaim", "status", "runs/sweep_held")
    assert re.search(r"\nheld +\d+ +pending +BeginTime", told)


@pytest.mark.parametrize("where", ["runs/sweep_long", "runs/long", "from another folder"])
def test_progress_is_shown(cluster_of_file: Cluster, home: Path, under_way: JobRun, tmp_path: Path, where: str) -> None:
    place, words = (tmp_path, str(under_way.sweep)) if where == "from another folder" else (home, where)
    told = run_semaim(cluster_of_file, place, "semaim", "status", words)
    assert re.search(r"\nlong +\d+ +running +step \d+/1700, [\d.e+]+ images/s, ETA .+", told)


def test_a_live_job_is_not_submitted_again(cluster_of_file: Cluster, home: Path, under_way: JobRun) -> None:
    first = under_way.job
    assert "already finished or under way: 1 of 1 run" in run_semaim(cluster_of_file, home, "semaim.run", *LONG)
    assert under_way.job == first


@pytest.mark.parametrize(
    ("name", "detail"), [("long", "CANCELLED: stopped by SIGTERM after step"), ("held", "CANCELLED")]
)
def test_a_cancelled_job_is_shown_as_interrupted(cancelled: dict[str, str], name: str, detail: str) -> None:
    assert re.search(rf"\n{name} +\d+ +interrupted +{detail}", cancelled[name])


@pytest.mark.usefixtures("cancelled")
def test_a_cancelled_run_is_retried_from_its_last_step(cluster_of_file: Cluster, home: Path, under_way: JobRun) -> None:
    run, first = under_way, under_way.job
    assert shown(home)["long"][1] == "KILLED"
    stopped = run.stops()[-1]
    retry = ("semaim", "retry", "--failed", "runs/sweep_long")
    run_semaim(cluster_of_file, home, *retry, "timeout_min=60", "cpus_per_task=1")
    assert run.job != first
    run.wait_for_step(stopped + 1)
    assert run.continuations() == [stopped]
    said = run_semaim(cluster_of_file, home, *retry, "memory=3", expect=2)
    assert "there is no launcher option memory" in said
