"""Job states on a real SLURM when accounting, the controller or the job does not respond."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from semaim.core import slurm_job
from support.commands import PROGRAM, finished, status
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
    assert slurm_job.job_states([job])[job].state == "over"
