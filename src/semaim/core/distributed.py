"""The processes of a run: one alone, or those that torchrun or a submitit job started."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from semaim.core.files import read_json, write_json
from semaim.errors import UserError

TIMEOUT = timedelta(minutes=10)  # how long processes wait for one that has stopped answering


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank, world_size: number of this process, and how many there are.
        device: where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person at the keyboard."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's value of any picklable kind, by rank."""
        values: list[Any] = [None] * self.world_size
        if self.world_size == 1:
            return [value]
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of the first process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            dist.barrier()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device of a name: "auto" is the GPU of this process if there is one.

    Raises:
        UserError: if the device does not exist here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device} is unknown: choose auto, cpu or cuda") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device={device}, but torch sees no GPU: choose device=cpu or device=auto")
        index = local_rank if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise UserError(f"process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible")
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    return chosen


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run, before they know each other."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def start(device: str) -> Processes:
    """Join the processes that torchrun or a submitit job has started, if there are several."""
    place = _of_torchrun() or _of_submitit()
    if place is None or place.world_size == 1:
        _keep_to_own_cpus()
        return Processes(0, 1, choose_device(device))
    # SLURM's --gpus-per-task shows each process its own GPU alone, as the first.
    gpu = 0 if "SLURM_GPUS_PER_TASK" in os.environ else place.local_rank
    chosen = choose_device(device, gpu)
    group: dict[str, Any] = {} if "RANK" in os.environ else _rendezvous(place)
    if chosen.type == "cuda":
        dist.init_process_group("nccl", device_id=chosen, timeout=TIMEOUT, **group)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT, **group)
        # torchrun sets OMP_NUM_THREADS=1; share the CPUs of this node instead
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", usable_cpus() // place.local_world_size))
        torch.set_num_threads(max(1, cpus))
    return Processes(dist.get_rank(), dist.get_world_size(), chosen)


def _keep_to_own_cpus() -> None:
    """As many threads as SLURM gave this process CPUs, unless OMP_NUM_THREADS says otherwise.

    Not every cluster keeps processes to their CPUs, and threads in each other's way take many times as long.
    """
    if "OMP_NUM_THREADS" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
        torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))


def _of_torchrun() -> Place | None:
    if "RANK" not in os.environ:
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return Place(rank, world_size, *local)


def _of_submitit() -> Place | None:
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    from submitit import JobEnvironment

    job = JobEnvironment()
    return Place(job.global_rank, job.num_tasks, job.local_rank, job.num_tasks // job.num_nodes)


def _rendezvous(place: Place) -> dict[str, Any]:
    """How the processes of a submitit job find each other: through a file in the job's folder, which all nodes see.

    The first process takes a port that is free and writes it there. A port agreed on beforehand may be taken.
    """
    from submitit import JobEnvironment

    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    file = JobEnvironment().paths.folder / f"rendezvous_{attempt}.json"
    if place.rank == 0:
        host = os.environ.get("SLURMD_NODENAME", "localhost")
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT
        )
        write_json(file, {"host": host, "port": store.port})
    else:
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while (found := read_json(file)) is None:
            if time.monotonic() > deadline:
                raise UserError(f"process {place.rank} waited {TIMEOUT} in vain for {file}: do all nodes see it?")
            time.sleep(0.1)
        host, port = found["host"], found["port"]
        store = dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    return {"store": store, "rank": place.rank, "world_size": place.world_size}


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
