"""Which of the processes of a run this one is, by the variables of torchrun, submitit or srun. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

STEP_TASKS = "SLURM_STEP_NUM_TASKS"  # srun's; without it a process in a SLURM job is alone


OF_A_TASK = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS")


@dataclass(frozen=True)
class Ranks:
    """Place of a process among those that were started together: by whom, its index in all and on its node."""

    launcher: Literal["torchrun", "submitit", "srun"] | None = None
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def speaks(self) -> bool:
        """Whether this process writes to the screen. Those of submitit do: each has a file of its own."""
        return self.rank == 0 or self.launcher == "submitit"


def ranks() -> Ranks:
    """The ranks given by torchrun, else by submitit, else by srun.

    Batch scripts and shells in a job have many of srun's variables, but belong to no step of several tasks. A job that
    was submitted from within a step has those of this step, and the number of tasks of its own.
    """
    variables = os.environ
    if variables.get("RANK"):
        rank, world_size = int(variables["RANK"]), int(variables.get("WORLD_SIZE", 1))
        local = int(variables.get("LOCAL_RANK", 0)), int(variables.get("LOCAL_WORLD_SIZE", world_size))
        return Ranks("torchrun", rank, world_size, *local)
    if "SUBMITIT_EXECUTOR" in variables:
        from submitit import JobEnvironment

        job = JobEnvironment()
        return Ranks("submitit", job.global_rank, job.num_tasks, job.local_rank, job.num_tasks // job.num_nodes)
    tasks = variables.get(STEP_TASKS, "1")
    if tasks == "1" or tasks != variables.get("SLURM_NTASKS") or not {*OF_A_TASK} <= {*variables}:
        return Ranks()
    on_this_node = variables["SLURM_GTIDS"].split(",")  # ranks; nodes may have different numbers
    return Ranks("srun", int(variables["SLURM_PROCID"]), int(tasks), int(variables["SLURM_LOCALID"]), len(on_this_node))
