"""Checks whether SLURM has the nodes that a launcher requests."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from semaim.core.formatting import plural
from semaim.core.slurm_job import output_of

SINFO = ("sinfo", "--noheader", "--Node", "--format=%P|%N|%G|%c|%m|%l|%T")
OUT_OF_SERVICE = re.compile(r"down|drain|drng|fail|error|unknown|inval|future|\*")  # a star: not responding


@dataclass(frozen=True)
class SlurmRequest:
    """A launcher's request: nodes; on each of them processes, GPUs, CPUs and MB; time limit in minutes; its options."""

    nodes: int
    tasks: int
    gpus: int
    cpus: int
    memory: int
    minutes: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, launcher: Mapping[str, Any]) -> SlurmRequest:
        """Read a launcher's options; without any of these a run has a single process."""
        integers = {key: value for key, value in launcher.items() if isinstance(value, int)}
        tasks = integers.get("tasks_per_node", 1)
        gpus = integers.get("gpus_per_node") or integers.get("gpus_per_task", 0) * tasks
        gpus = gpus or gpus_in(launcher.get("gres") or "")
        cpus = max(integers.get("cpus_per_task", 1) * tasks, integers.get("cpus_per_gpu", 0) * gpus)
        memory = round(1024 * (launcher.get("mem_gb") or 0))
        return cls(integers.get("nodes", 1), tasks, gpus, cpus, memory, integers.get("timeout_min", 0), launcher)

    @property
    def processes(self) -> int:
        """Number of processes of a run."""
        return self.nodes * self.tasks

    @property
    def slurm(self) -> bool:
        """Whether the launcher uses SLURM."""
        return "partition" in self.options


@dataclass(frozen=True)
class Node:
    """A node in a partition: GPUs, CPUs, MB; the partition's time limit in minutes (None: none); if in service."""

    partition: str
    is_default: bool  # the default partition
    gpus: int
    cpus: int
    memory: int
    minutes: int | None
    in_service: bool


def nodes_of(sinfo: str) -> list[Node]:
    """The nodes in the output of `SINFO`; a node in several partitions is listed several times."""
    nodes = []
    for line in sinfo.splitlines():
        partition, _, gres, cpus, memory, limit, state = line.split("|")
        sizes = gpus_in(gres), int(cpus.rstrip("+")), int(memory.rstrip("+"))
        in_service = OUT_OF_SERVICE.search(state.lower()) is None
        nodes.append(Node(partition.rstrip("*"), partition.endswith("*"), *sizes, minutes_in(limit), in_service))
    return nodes


def gpus_in(gres: str) -> int:
    """Number of GPUs in generic resources: 6 in "gpu:a100:4(S:0-1),gpu:v100:2,nvme:1"."""
    kinds = (kind for kind in re.sub(r"\([^)]*\)", "", gres).split(",") if kind.split(":")[0] == "gpu")
    return sum(int(integers) if (integers := kind.split(":")[-1]).isdigit() else 1 for kind in kinds)


def minutes_in(limit: str) -> int | None:
    """Minutes of a SLURM time limit such as 30:00, 8:00:00 or 2-12:00:00; None for "infinite"."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):\d+", limit)):
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def slurm_problems(request: SlurmRequest) -> list[str]:
    """Requests that SLURM would never grant; none if the launcher does not use SLURM."""
    if not request.slurm:
        return []
    if shutil.which(SINFO[0]) is None:
        return ["the launcher submits to SLURM, but there is no SLURM here (no sinfo): do this on a login node"]
    if (text := output_of(*SINFO)) is None:
        return ["the launcher submits to SLURM, but SLURM does not answer: see what sinfo says"]
    return not_granted(request, nodes_of(text))


def not_granted(request: SlurmRequest, nodes: Sequence[Node]) -> list[str]:
    """Requests that no nodes fulfil; features, accounts and the current use of nodes are not checked."""
    known = ", ".join(sorted({node.partition for node in nodes}))
    partitions = (request.options["partition"] or "").split(",")
    if len(partitions) > 1:  # a job runs in one of them
        alternatives = [{**request.options, "partition": name} for name in partitions]
        return min((not_granted(replace(request, options=each), nodes) for each in alternatives), key=len)
    candidates = [node for node in nodes if (node.partition == partitions[0] if partitions[0] else node.is_default)]
    if not candidates and partitions[0]:
        return [f"hydra.launcher.partition={partitions[0]}: there is no such partition; choose from {known}"]
    if not candidates:
        return [f"hydra.launcher.partition must be given, since none is the default; choose from {known}"]
    partition, limit, problems = f"partition {candidates[0].partition}", candidates[0].minutes, []
    if limit is not None and request.minutes > limit:
        problems.append(f"hydra.launcher.timeout_min={request.minutes}: {partition} allows {limit} minutes, lower it")
    available = [node for node in candidates if node.in_service]
    if len(available) < request.nodes:
        others = len(candidates) - len(available)
        down = f" ({others} more are out of service)" if others else ""
        problems.append(f"hydra.launcher.nodes={request.nodes}: {partition} has {len(available)}{down}, ask for fewer")
        return problems
    options = request.options
    gpus = next((key for key in ("gpus_per_node", "gpus_per_task", "gres") if options.get(key)), "gpus_per_node")
    cpus = f"cpus_per_task={options.get('cpus_per_task') or 1} x tasks_per_node={request.tasks}"
    for option, size, unit in (
        (f"{gpus}={options.get(gpus)}", "gpus", "GPUs"),
        (cpus, "cpus", "CPUs"),
        (f"mem_gb={options.get('mem_gb')}", "memory", "MB"),
    ):
        required = getattr(request, size)
        if len(sufficient := [node for node in available if getattr(node, size) >= required]) >= request.nodes:
            available = sufficient
            continue
        largest = max(getattr(node, size) for node in available)
        found = f"{partition} has {plural(len(sufficient), 'node')} with {required} {unit} (at most {largest})"
        problems.append(f"hydra.launcher.{option}: {found}, {request.nodes} must have them")
    return problems
