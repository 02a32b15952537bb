"""The processes of a run: a single one, or those started by torchrun, srun or a submitit job."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from semaim.core.ranks import Ranks, ranks
from semaim.core.rendezvous import TIMEOUT, store_of
from semaim.errors import UserError


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


def start(device: str, runs_dir: Path) -> Processes:
    """Initialise the process group if torchrun, srun or a submitit job started several processes.

    Args:
        device: as in the configuration.
        runs_dir: a folder that all processes see, where those of srun find each other.

    Raises:
        UserError: if the device does not exist, or not all processes come.
    """
    place = ranks()
    if place.world_size == 1:
        # Not every cluster binds processes to their CPUs, and oversubscribed CPUs are many times slower.
        if "OMP_NUM_THREADS" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
            torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))
        return Processes(0, 1, choose_device(device))
    torch_device = choose_device(device, _gpu(place))
    from torch import _dynamo  # noqa: F401 - DDP imports it, and it would refer to the group that there is, for ever

    # The runs of a sweep follow each other in the same processes. Each has its own group, because one that failed on
    # one process leaves the group in disorder, and its own keys in the store.
    prefix = f"group_{next(_group_numbers)}"
    store = dist.PrefixStore(prefix, store_of(place, runs_dir.absolute()))  # type: ignore[attr-defined]
    group: dict[str, Any] = {"store": store, "rank": place.rank, "world_size": place.world_size}
    if torch_device.type == "cuda":
        dist.init_process_group("nccl", device_id=torch_device, timeout=TIMEOUT, **group)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT, **group)
        # torchrun sets OMP_NUM_THREADS=1; share the CPUs of this node instead
        on_node = int(os.environ.get("SLURM_CPUS_ON_NODE", usable_cpus()))
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", on_node // place.local_world_size))
        torch.set_num_threads(max(1, cpus))
    return Processes(dist.get_rank(), dist.get_world_size(), torch_device, place.local_world_size)


_group_numbers = itertools.count()


def _gpu(place: Ranks) -> int:
    """Index of this process's GPU. With --gpus-per-task or --gpu-bind, SLURM shows each process only its own."""
    if place.launcher == "torchrun":  # its processes see the same
        return place.local_rank
    visible = torch.cuda.device_count()
    bound = "SLURM_GPUS_PER_TASK" in os.environ  # or of those on the node, not all are visible
    bound |= visible < place.local_world_size <= int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    return place.local_rank % visible if visible and bound else place.local_rank


def stop() -> None:
    """Leave the process group. When nothing refers to it, its connections end, and processes that wait in it fail."""
    if dist.is_initialized():
        dist.destroy_process_group()
