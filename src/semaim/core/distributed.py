"""The processes of a run: a single one, or those started by torchrun or a submitit job."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from semaim.core.files import read_json, write_json
from semaim.errors import UserError

TIMEOUT = timedelta(minutes=10)  # of collective operations and of the rendezvous


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Processes:
    """The process group of a run, as seen by this process.

    Attributes:
        rank: index of this process.
        world_size: number of processes.
        device: device of this process.
        on_this_node: number of processes on the same machine.
    """

    rank: int
    world_size: int
    device: torch.device
    on_this_node: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and user messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; any picklable type."""
        values: list[Any] = [None] * self.world_size
        if self.world_size == 1:
            return [value]
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Resolve a device name; "auto" is the GPU of this process if there is one.

    Raises:
        UserError: if the device does not exist.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device} is unknown: choose auto, cpu or cuda") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device={device}, but torch sees no GPU: choose device=cpu or device=auto")
        index = local_rank if resolved.index is None else resolved.index
        if index >= torch.cuda.device_count():
            raise UserError(f"process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible")
        resolved = torch.device("cuda", index)
        torch.cuda.set_device(resolved)
    return resolved


@dataclass(frozen=True)
class Ranks:
    """Ranks of a process, read from the environment before the process group is initialised."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def start(device: str) -> Processes:
    """Initialise the process group if torchrun or a submitit job started several processes."""
    ranks = _ranks()
    if ranks is None or ranks.world_size == 1:
        # Not every cluster binds processes to their CPUs, and oversubscribed CPUs are many times slower.
        if "OMP_NUM_THREADS" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
            torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))
        return Processes(0, 1, choose_device(device))
    # With SLURM's --gpus-per-task each process sees only its own GPU, as index 0.
    gpu = 0 if "SLURM_GPUS_PER_TASK" in os.environ else ranks.local_rank
    torch_device = choose_device(device, gpu)
    from torch import _dynamo  # noqa: F401 - DDP imports it, and it would refer to the group that there is, for ever

    store = _store_of_torchrun() if "RANK" in os.environ else _rendezvous(ranks)
    # The runs of a sweep follow each other in the same processes. Each has its own group, because one that failed on
    # one process leaves the group in disorder, and its own keys in the store.
    store = dist.PrefixStore(f"group_{next(_group_numbers)}", store)  # type: ignore[attr-defined]
    group: dict[str, Any] = {"store": store, "rank": ranks.rank, "world_size": ranks.world_size}
    if torch_device.type == "cuda":
        dist.init_process_group("nccl", device_id=torch_device, timeout=TIMEOUT, **group)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT, **group)
        # torchrun sets OMP_NUM_THREADS=1; share the CPUs of this node instead
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", usable_cpus() // ranks.local_world_size))
        torch.set_num_threads(max(1, cpus))
    return Processes(dist.get_rank(), dist.get_world_size(), torch_device, ranks.local_world_size)


_group_numbers = itertools.count()


@cache
def _store_of_torchrun() -> Any:
    """The store that torchrun's processes share, or the first one offers the others at MASTER_PORT."""
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))  # type: ignore[attr-defined]
    return store


def _ranks() -> Ranks | None:
    """The ranks given by torchrun or else by submitit; None without either."""
    if "RANK" in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        return Ranks(rank, world_size, *local)
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    from submitit import JobEnvironment

    job = JobEnvironment()
    return Ranks(job.global_rank, job.num_tasks, job.local_rank, job.num_tasks // job.num_nodes)


def _rendezvous(ranks: Ranks) -> Any:
    """The store of a submitit job.

    Rank 0 binds a free port and writes its address to a file in the job's folder, which all nodes share. A fixed port
    could already be in use.
    """
    from submitit import JobEnvironment

    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    file = JobEnvironment().paths.folder / f"rendezvous_{attempt}.json"
    if ranks.rank == 0:
        host = os.environ.get("SLURMD_NODENAME", "localhost")
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT
        )
        write_json(file, {"host": host, "port": store.port})
    else:
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while (address := read_json(file, dict[str, Any])) is None:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {ranks.rank} waited {TIMEOUT} for {file}, which did not appear: do all nodes see it?"
                )
            time.sleep(0.1)
        host, port = address["host"], address["port"]
        store = dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    return store


def stop() -> None:
    """Leave the process group. When nothing refers to it, its connections end, and processes that wait in it fail."""
    if dist.is_initialized():
        dist.destroy_process_group()
