"""A model on paper of what data-parallel training loses to communication. docs/performance.md states it in words.

Each step, the processes average their gradients with a ring all-reduce: each one sends 2 (n - 1) / n times the bytes of
the gradients. DDP does so bucket by bucket during the backward pass; only the rest that does not fit into it is waited
for, at least the last bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BUCKET_BYTES = 25 * 2**20  # of torch's DDP
GRADIENT_BYTES = 4  # per parameter: gradients are float32, as the weights
LATENCY = 10e-6  # seconds of a message between processes; a tree has 2 log2(n) of them
ACHIEVED = 0.8  # share of a link's nominal speed


@dataclass(frozen=True)
class Network:
    """Links of a cluster, nominal, in bytes per second in one direction.

    Attributes:
        name: in words.
        between_gpus: of a GPU to those of its node.
        between_nodes: of a node to the others, all its network cards together.
        gpus_per_node: GPUs of a node.
    """

    name: str
    between_gpus: float
    between_nodes: float
    gpus_per_node: int = 8

    def bandwidth(self, processes: int) -> float:
        """The slowest link of a ring over this number of GPUs, as achieved."""
        nominal = self.between_gpus if processes <= self.gpus_per_node else min(self.between_gpus, self.between_nodes)
        return ACHIEVED * nominal


FAST = Network("8 cards of 400 Gbit/s per node", 450e9, 400e9)
SLOW = Network("1 card of 100 Gbit/s per node", 450e9, 12.5e9)


def ring_bytes(gradient_bytes: float, processes: int) -> float:
    """Bytes that each process sends in an all-reduce."""
    return 2 * (processes - 1) / processes * gradient_bytes


def all_reduce_seconds(gradient_bytes: float, processes: int, bandwidth: float, latency: float = LATENCY) -> float:
    """Seconds of the all-reduce of all buckets."""
    if processes == 1:
        return 0.0
    buckets = math.ceil(gradient_bytes / BUCKET_BYTES)
    return ring_bytes(gradient_bytes, processes) / bandwidth + buckets * 2 * math.log2(processes) * latency


def exposed_seconds(communication: float, backward: float, gradient_bytes: float) -> float:
    """Seconds of communication that a step waits for: what the backward pass does not hide.

    Args:
        communication: of all buckets.
        backward: seconds of the backward pass; 0 if nothing is hidden, as on a CPU, which does both.
        gradient_bytes: of all gradients.
    """
    buckets = math.ceil(gradient_bytes / BUCKET_BYTES)
    return max(communication / buckets, communication - backward * (1 - 1 / buckets))


def efficiency(compute: float, backward: float, parameters: int, processes: int, network: Network) -> float:
    """Share of the speed of independent processes.

    Args:
        compute: seconds of a step without communication.
        backward: seconds of its backward pass.
        parameters: of the model.
        processes: n, one per GPU.
        network: their links.
    """
    if processes == 1:
        return 1.0
    gradient_bytes = GRADIENT_BYTES * parameters
    communication = all_reduce_seconds(gradient_bytes, processes, network.bandwidth(processes))
    return compute / (compute + exposed_seconds(communication, backward, gradient_bytes))
