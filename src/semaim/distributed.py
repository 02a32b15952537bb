"""The processes of a run: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from semaim.errors import UserError


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


def start(device: str) -> Processes:
    """Join the process group that torchrun describes in the environment, if there is one."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" not in os.environ or world_size == 1:
        return Processes(0, 1, choose_device(device))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        dist.init_process_group("nccl", device_id=chosen)
    else:
        dist.init_process_group("gloo")
        # torchrun sets OMP_NUM_THREADS=1; share the CPUs of this node instead
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    return Processes(dist.get_rank(), dist.get_world_size(), chosen)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
