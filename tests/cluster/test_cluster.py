"""The cluster fixture works: two nodes, with accounting, and an empty queue before each test."""

from __future__ import annotations

import re
from pathlib import Path

from support.slurm import Cluster
from support.waiting import wait_for

# Reports its start and SIGTERM; exits on SIGTERM.
PATIENT = """#!/bin/bash
trap 'echo "SIGTERM taken"; exit 0' TERM
echo "start ${SLURM_RESTART_COUNT:-0}"
while true; do sleep 0.1; done
"""


def test_two_nodes_are_idle_and_a_job_of_both_completes(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.nodes() == {"n1": "idle", "n2": "idle"}
    job = cluster.sbatch("-N", "2", "--gpus-per-node=2", "--wrap", "srun hostname", "-o", "out", cwd=tmp_path)
    cluster.wait_for_state(job, "COMPLETED")
    assert len((tmp_path / "out").read_text().split()) == 2
    wait_for(lambda: [start["NodeList"] for start in cluster.sacct(job)] == ["n[1-2]"], "the accounts")
    assert [(start["State"], start["ExitCode"]) for start in cluster.sacct(job)] == [("COMPLETED", "0:0")]
    assert cluster.squeue() == {}


def test_an_urgent_job_preempts_another(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "patient.sh").write_text(PATIENT)
    out = tmp_path / "out"
    whole = ("-N", "2", "--exclusive")
    main = cluster.sbatch(*whole, "-o", "out", "--open-mode=append", "patient.sh", cwd=tmp_path)
    wait_for(lambda: out.exists() and out.read_text() == "start 0\n", "the first job")
    urgent = cluster.sbatch(*whole, "-p", "urgent", "-o", "/dev/null", "--wrap", "sleep 1")
    cluster.wait_for_state(urgent, "RUNNING", "COMPLETED")
    assert cluster.squeue()[str(main)] == "PENDING"
    cluster.wait_for_state(urgent, "COMPLETED")
    cluster.start_now(main)
    wait_for(lambda: "start 1" in out.read_text(), "the first job to come back")
    said = re.findall(r"^start \d|^SIGTERM taken", out.read_text(), re.MULTILINE)
    assert said == ["start 0", "SIGTERM taken", "start 1"]
    assert cluster.job(main)["Restarts"] == "1"
    wait_for(lambda: [start["State"] for start in cluster.sacct(main)] == ["PREEMPTED", "RUNNING"], "the accounts")


def test_the_queue_is_empty_after_a_test(cluster: Cluster) -> None:
    assert cluster.squeue() == {}  # the previous test left a job behind
