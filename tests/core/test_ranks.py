"""Ranks of a process by the variables of torchrun and SLURM, recorded on Slurm 22.05."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
import torch

from semaim.core import distributed, ranks
from semaim.core.ranks import Ranks

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"}
BATCH = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0", "SLURM_TASK_PID": "21877"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]"}
LAST = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_GTIDS": "2,3"}
ONE = {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SUBMITIT = {"SUBMITIT_EXECUTOR": "slurm"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM", "SUBMITIT")) or name in TORCHRUN:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        pytest.param({}, Ranks(), id="no job"),
        pytest.param({"RANK": ""}, Ranks(), id="empty variable"),
        pytest.param(JOB | STEP, Ranks(), id="variables of no task"),
        pytest.param(JOB, Ranks(), id="shell of salloc"),
        pytest.param(BATCH, Ranks(), id="batch script"),
        pytest.param(BATCH | STEP | ONE, Ranks(), id="srun --pty bash"),
        pytest.param(BATCH | STEP | {"SLURM_NTASKS": "1"}, Ranks(), id="job submitted from a step"),
        pytest.param(JOB | STEP | LAST, Ranks("srun", 3, 4, 1, 2), id="step of four tasks"),
        pytest.param(
            JOB | STEP | LAST | {"SLURM_LOCALID": "2", "SLURM_GTIDS": "1,2,3"}, Ranks("srun", 3, 4, 2, 3), id="uneven"
        ),
        pytest.param(JOB | STEP | LAST | TORCHRUN, Ranks("torchrun", 1, 2, 1, 2), id="torchrun in a step"),
        pytest.param(JOB | STEP | LAST | SUBMITIT, Ranks("submitit", 3, 4, 1, 2), id="submitit"),
    ],
)
def test_ranks(variables: Mapping[str, str], found: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.ranks() == found
    assert found.speaks == (found.rank == 0 or found.launcher == "submitit")


@pytest.mark.parametrize(
    ("launcher", "variables", "visible", "gpu"),
    [
        ("srun", {"SLURM_GPUS_ON_NODE": "4"}, 4, 3),
        ("srun", {"SLURM_GPUS_ON_NODE": "4"}, 1, 0),  # --gpus-per-task=1, --gpu-bind=single:1
        ("srun", {"SLURM_GPUS_ON_NODE": "4"}, 2, 1),  # --gpu-bind=closest, two sockets
        ("srun", {"SLURM_GPUS_ON_NODE": "1"}, 1, 3),  # too few: refused
        ("submitit", {"SLURM_GPUS_PER_TASK": "1"}, 1, 0),
        ("torchrun", {"SLURM_GPUS_PER_TASK": "4", "SLURM_GPUS_ON_NODE": "4"}, 4, 3),  # in a job of one task
    ],
)
def test_each_process_has_a_gpu_that_it_sees(
    launcher: str, variables: Mapping[str, str], visible: int, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert distributed._gpu(Ranks(launcher, 3, 4, 3, 4)) == gpu  # type: ignore[arg-type]
