"""Job states on a real SLURM when accounting, the controller or the job does not respond."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from semaim.core import slurm_job
from semaim.core.slurm_job import NOT_LISTED, JobState, is_being_requeued, job_states
from support.commands import PROGRAM, finished, status
from support.fake_slurm import FakeSlurm
from support.slurm import Cluster
from support.slurm_runs import LEFT_ALONE, JobRun, run_semaim
from support.undisturbed import shown
from support.waiting import wait_for

pytestmark = pytest.mark.slow


def test_status_without_accounting_of_a_job_killed_for_good(cluster: Cluster, tmp_path: Path) -> None:
    options = (*LEFT_ALONE, "sweep.restarts=0", "run_name=lost")
    run_semaim(cluster, tmp_path, "semaim.run", *options, "trainer.max_steps=1700")
    run = JobRun(cluster, tmp_path, "lost", ())
    run.wait_for_step(5)
    os.kill(run.process(), signal.SIGKILL)
    run.wait_until_over()
    commands = tmp_path / "without_sacct"
    commands.mkdir()
    for name in ("squeue", "scontrol", "sinfo", "scancel", "git"):
        (path,) = [Path("/usr/bin") / name]
        (commands / name).symlink_to(path)
    asked = time.monotonic()
    environment = cluster.environment | {"PATH": str(commands)}
    done = finished([*PROGRAM, "status", "runs/sweep_lost"], tmp_path, environment)
    assert time.monotonic() - asked < 60
    assert done.returncode == 1
    assert re.search(r"\nlost +\d+ +failed +n[12]: task 0: Killed", done.stdout), done.stdout
    assert shown(tmp_path)["lost"][1] in ("KILLED", "FAILED")
    assert status(run.folder)["state"] in ("failed", "vanished")
    again = run_semaim(cluster, tmp_path, "semaim", "status", "runs/sweep_lost", expect=1)
    assert again == done.stdout


def test_unresponsive_controller_marks_no_run_as_dead(cluster: Cluster, tmp_path: Path) -> None:
    options = (*LEFT_ALONE, "run_name=alive", "trainer.max_steps=1700")
    run_semaim(cluster, tmp_path, "semaim.run", *options)
    run = JobRun(cluster, tmp_path, "alive", ())
    run.wait_for_step(3)
    nobody = tmp_path / "nobody.conf"
    port = cluster.port
    nobody.write_text((cluster.folder / "slurm.conf").read_text().replace(f"SlurmctldPort={port}", "SlurmctldPort=9"))
    silent = cluster.environment | {"SLURM_CONF": str(nobody)}
    done = finished([*PROGRAM, "status", "runs/sweep_alive"], tmp_path, silent)
    assert re.search(
        r"\nalive +\d+ +unknown +SLURM does not answer \(squeue.+; the run folder says: running", done.stdout
    )
    assert done.returncode == 0
    assert status(run.folder)["state"] == "running"
    wait_for(lambda: run.step() > 5, "steps")
    cluster.run("scancel", run.job)


def test_job_cancelled_during_requeue_is_over(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounting state stays REQUEUED, and after some minutes only accounting still has the job."""
    (tmp_path / "job.sh").write_text("#!/bin/bash\ntrap 'sleep 3; exit' TERM\nwhile true; do sleep 0.1; done\n")
    job = str(cluster.sbatch("-o", "/dev/null", "job.sh", cwd=tmp_path))
    cluster.wait_for_state(job, "RUNNING")
    time.sleep(2)  # until the script has set its signal handler
    cluster.run("scontrol", "requeue", job)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    wait_for(lambda: [start["State"] for start in cluster.sacct(int(job))] == ["REQUEUED"], "the accounts")
    monkeypatch.setattr(slurm_job, "_from_controller", lambda _: {})
    assert job_states([job])[job].state == "over"


def test_words_for_the_tasks_of_an_array(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with accounts that do not answer, for which `sacct` is replaced."""
    array = cluster.sbatch("-o", "/dev/null", "--array=0-4%2", "--wrap=sleep 300")
    jobs = [f"{array}_{task}" for task in range(5)]
    wait_for(lambda: [cluster.squeue().get(job) for job in jobs[:2]] == ["RUNNING"] * 2, "two tasks")
    cluster.run("scancel", jobs[4])
    cluster.run("scontrol", "suspend", jobs[0])
    cluster.run("scontrol", "requeuehold", jobs[1])
    wait_for(lambda: job_states(jobs)[jobs[2]].state == "running", "the next task")
    wait_for(lambda: job_states(jobs)[jobs[1]].state == "waiting", "the task that is held")
    states = job_states([*jobs, "99999"])
    node = {states[job].nodes for job in (jobs[0], jobs[2])}
    assert node <= {"n1", "n2"}
    assert states[jobs[0]] == JobState("suspended", "SUSPENDED", 0, states[jobs[0]].nodes)
    assert "held" in states[jobs[1]].reason
    assert states[jobs[1]].restarts == 1
    assert states[jobs[3]] == JobState("waiting", "JobArrayTaskLimit")
    assert states[jobs[4]] == states["99999"] == job_states(["99999"])["99999"] == JobState("over", NOT_LISTED)
    with monkeypatch.context() as patch:
        accounts = FakeSlurm(tmp_path / "bin")
        accounts.answers("sacct", error="sacct: error: Problem talking to the database: Connection refused", code=1)
        patch.setenv("PATH", accounts.path)
        patch.setattr(slurm_job, "RETRY_SECONDS", 0.0)
        unanswered = job_states(jobs)
    assert unanswered[jobs[4]].state == "unknown"
    assert {job: unanswered[job] for job in jobs[:4]} == {job: states[job] for job in jobs[:4]}
    cluster.run("scancel", array)
    wait_for(lambda: {state.state for state in job_states(jobs).values()} == {"over"}, "the array to end")
    states = job_states(jobs)
    assert states[jobs[3]].reason.endswith("before it started")
    assert states[jobs[2]].reason == "CANCELLED"


def test_the_last_task_of_an_array_asks_for_itself(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its SLURM_JOB_ID is the number of the array, which would also tell of the requeued first task."""
    array = cluster.sbatch("-o", "/dev/null", "--array=0-1", "--wrap=trap 'sleep 5' TERM; while sleep 0.1; do :; done")
    jobs = [f"{array}_{task}" for task in range(2)]
    wait_for(lambda: [cluster.squeue().get(job) for job in jobs] == ["RUNNING"] * 2, "both tasks")
    assert cluster.job(f"{array}_1")["JobId"] == str(array)
    cluster.run("scontrol", "requeue", f"{array}_0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", str(array))
    for task, expected in ((0, True), (1, False)):
        monkeypatch.setenv("SLURM_JOB_ID", cluster.job(f"{array}_{task}")["JobId"])
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        assert is_being_requeued() is expected
