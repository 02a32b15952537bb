"""Whether SLURM has the nodes that a launcher asks for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from semaim.core.formatting import plural
from semaim.core.slurm_job import slurm_output

SINFO = ("sinfo", "--noheader", "--Node", "--format=%P|%N|%G|%c|%m|%l|%T")
OUT_OF_SERVICE = re.compile(r"down|drain|drng|fail|error|unknown|inval|future|\*")  # a star: it does not respond


@dataclass(frozen=True)
class SlurmRequest:
    """What a launcher asks for: nodes; on each of them processes, GPUs, CPUs and MB; minutes at most; its options."""

    nodes: int
    tasks: int
    gpus: int
    cpus: int
    memory: int
    minutes: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, launcher: Mapping[str, Any]) -> SlurmRequest:
        """Read a launcher's options; one without any of these computes in a single process."""
        number = {key: value for key, value in launcher.items() if isinstance(value, int)}
        tasks = number.get("tasks_per_node", 1)
        gpus = number.get("gpus_per_node") or number.get("gpus_per_task", 0) * tasks
        gpus = gpus or gpus_in(launcher.get("gres") or "")
        cpus = max(number.get("cpus_per_task", 1) * tasks, number.get("cpus_per_gpu", 0) * gpus)
        memory = round(1024 * (launcher.get("mem_gb") or 0))
        return cls(number.get("nodes", 1), tasks, gpus, cpus, memory, number.get("timeout_min", 0), launcher)

    @property
    def processes(self) -> int:
        """How many compute a run."""
        return self.nodes * self.tasks

    @property
    def slurm(self) -> bool:
        """Whether SLURM is asked."""
        return "partition" in self.options


@dataclass(frozen=True)
class Node:
    """A node in a partition: GPUs, CPUs, MB; the partition's minutes (None: no limit); whether it is in service."""

    partition: str
    usual: bool  # the default partition
    gpus: int
    cpus: int
    memory: int
    minutes: int | None
    up: bool


def nodes_of(sinfo: str) -> list[Node]:
    """The nodes in the output of `SINFO`; one that is in several partitions stands there several times."""
    nodes = []
    for line in sinfo.splitlines():
        partition, _, gres, cpus, memory, limit, state = line.split("|")
        sizes = gpus_in(gres), int(cpus.rstrip("+")), int(memory.rstrip("+"))
        up = OUT_OF_SERVICE.search(state.lower()) is None
        nodes.append(Node(partition.rstrip("*"), partition.endswith("*"), *sizes, minutes_in(limit), up))
    return nodes


def gpus_in(gres: str) -> int:
    """How many GPUs there are in generic resources: 6 in "gpu:a100:4(S:0-1),gpu:v100:2,nvme:1"."""
    kinds = (kind for kind in re.sub(r"\([^)]*\)", "", gres).split(",") if kind.split(":")[0] == "gpu")
    return sum(int(number) if (number := kind.split(":")[-1]).isdigit() else 1 for kind in kinds)


def minutes_in(limit: str) -> int | None:
    """Minutes of a SLURM time limit such as 30:00, 8:00:00 or 2-12:00:00; None for "infinite"."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):\d+", limit)):
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def slurm_problems(asked: SlurmRequest) -> list[str]:
    """What SLURM would never grant; nothing if the launcher does not ask SLURM."""
    if not asked.slurm:
        return []
    if shutil.which(SINFO[0]) is None:
        return ["the launcher submits to SLURM, but there is no SLURM here (no sinfo): do this on a login node"]
    if (text := slurm_output(*SINFO)) is None:
        return ["the launcher submits to SLURM, but SLURM does not answer: see what sinfo says"]
    return not_granted(asked, nodes_of(text))


def not_granted(asked: SlurmRequest, nodes: Sequence[Node]) -> list[str]:
    """What a launcher asks for and nodes do not have; features, accounts and who uses the nodes are not looked at."""
    known = ", ".join(sorted({node.partition for node in nodes}))
    wanted = (asked.options["partition"] or "").split(",")
    if len(wanted) > 1:  # a job runs in one of them
        options = [{**asked.options, "partition": name} for name in wanted]
        return min((not_granted(replace(asked, options=each), nodes) for each in options), key=len)
    mine = [node for node in nodes if (node.partition == wanted[0] if wanted[0] else node.usual)]
    if not mine and wanted[0]:
        return [f"hydra.launcher.partition={wanted[0]}: there is no such partition; choose from {known}"]
    if not mine:
        return [f"hydra.launcher.partition must be given, since none is the default; choose from {known}"]
    where, limit, problems = f"partition {mine[0].partition}", mine[0].minutes, []
    if limit is not None and asked.minutes > limit:
        problems.append(f"hydra.launcher.timeout_min={asked.minutes}: {where} allows {limit} minutes, lower it")
    left = [node for node in mine if node.up]
    if len(left) < asked.nodes:
        down = f" ({len(mine) - len(left)} more are out of service)" if len(left) < len(mine) else ""
        problems.append(f"hydra.launcher.nodes={asked.nodes}: {where} has {len(left)}{down}, ask for fewer")
        return problems
    told = asked.options
    gpus = next((key for key in ("gpus_per_node", "gpus_per_task", "gres") if told.get(key)), "gpus_per_node")
    cpus = f"cpus_per_task={told.get('cpus_per_task') or 1} x tasks_per_node={asked.tasks}"
    for option, size, unit in (
        (f"{gpus}={told.get(gpus)}", "gpus", "GPUs"),
        (cpus, "cpus", "CPUs"),
        (f"mem_gb={told.get('mem_gb')}", "memory", "MB"),
    ):
        need = getattr(asked, size)
        if len(enough := [node for node in left if getattr(node, size) >= need]) >= asked.nodes:
            left = enough
            continue
        most = max(getattr(node, size) for node in left)
        there = f"{where} has {plural(len(enough), 'node')} with {need} {unit} (at most {most})"
        problems.append(f"hydra.launcher.{option}: {there}, {asked.nodes} must have them")
    return problems
