"""`semaim check` on a real cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support.slurm import Cluster
from support.waiting import PATIENCE


def test_the_whole_command_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    sweep = ("-m", "hydra/launcher=slurm", "seed=0,1", "hydra.launcher.cpus_per_task=2")

    def check_there(*words: str) -> tuple[int, list[str]]:
        typed = [sys.executable, "-m", "semaim", "check", *sweep, *words]
        done = subprocess.run(
            typed, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    code, said = check_there("hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=2")
    assert (code, said[-1]) == (0, "OK: 2 runs, 4 processes each, about 0.0 GPU-hours")
    assert [re.split(r"  +", line)[4] for line in said[1:3]] == ["880", "880"]
    code, said = check_there(
        "hydra.launcher.partition=short", "hydra.launcher.gpus_per_node=4", "hydra.launcher.mem_gb=8", "seed=0,1"
    )
    assert code == 2
    assert said[4:] == [
        "problem: hydra.launcher.timeout_min=1440: partition short allows 5 minutes, lower it",
        "problem: hydra.launcher.gpus_per_node=4: partition short has 0 nodes with 4 GPUs (at most 2), 1 must "
        "have them",
        "problem: hydra.launcher.cpus_per_task=2 x tasks_per_node=4: partition short has 0 nodes with 8 CPUs (at most "
        "4), 1 must have them",
        "problem: hydra.launcher.mem_gb=8: partition short has 0 nodes with 8192 MB (at most 8000), 1 must have them",
        "4 problems: 2 runs, 4 processes each, about 0.0 GPU-hours",
    ]
    wrong = ("hydra.launcher.constraint=a100", "hydra.launcher.gpus_per_node=4")
    code, said = check_there(*wrong)
    assert (code, said[4:-1]) == (2, [
        "problem: hydra.launcher.gpus_per_node=4: partition main has 0 nodes with 4 GPUs (at most 2), 1 must have them",
        "problem: hydra.launcher.cpus_per_task=2 x tasks_per_node=4: partition main has 0 nodes with 8 CPUs (at most "
        "4), 1 must have them",
        "problem: hydra.launcher.constraint=a100: SLURM does not accept it: Invalid feature specification",
    ])  # fmt: skip
    reservation = "hydra.launcher.additional_parameters.reservation=monday"
    code, said = check_there(f"+{reservation}")
    assert (code, said[4:-1]) == (
        2,
        [f"problem: {reservation}: SLURM does not accept it: Requested reservation is invalid"],
    )
    assert list(tmp_path.iterdir()) == []
    assert cluster.squeue() == {}
