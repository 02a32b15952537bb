"""A launcher's request, compared with the resources of the cluster's nodes."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import Any

import pytest

from semaim.models.aim import AIM
from semaim.preflight import slurm_nodes
from semaim.preflight.slurm_nodes import Node, SlurmRequest, gpus_in, minutes_in, nodes_of, not_granted
from semaim.training.memory import activations
from support.checking import one

# Recorded sinfo output of a cluster of two nodes with two GPUs each.
SINFO = """\
main*|n1|gpu:2|4|8000|infinite|idle
main*|n2|gpu:2|4|8000|infinite|idle
"""
SLURM = {"_target_": "SlurmLauncher", "partition": "main", "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 1}


def asked(**options: Any) -> SlurmRequest:
    return SlurmRequest.of(SLURM | options)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """sinfo returns the recorded output."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(slurm_nodes, "output_of", lambda *words: {slurm_nodes.SINFO: SINFO}[words])


@pytest.mark.usefixtures("two_nodes")
def test_several_processes_share_a_batch() -> None:
    launcher = SLURM | {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2}
    checked = one(launcher=launcher)
    assert (checked.problems, checked.notes, checked.processes) == ([], [], 4)
    assert str(checked).splitlines()[-1] == "OK: 1 run, 4 processes each, about 0.0 GPU-hours"
    (row,) = checked.rows
    real = AIM(48, 32, 4, embed_dim=96, depth=4, num_heads=3, query_depth=2)
    assert row.cost is not None
    assert row.cost.memory == 731_760 * (4 * 4 + 2) + 8 * activations(real, 2)  # 8 images each, bf16 on GPUs
    assert one("trainer.batch_size=30", launcher=launcher).problems == [
        "trainer.batch_size=30 must be divisible by processes x trainer.accumulate = 4 x 1"
    ]


@pytest.mark.usefixtures("two_nodes")
def test_gpus_and_processes_go_together() -> None:
    assert one("device=cuda", launcher=SLURM | {"gpus_per_node": None}).problems == [
        "device=cuda, but the launcher asks for no GPU: set hydra.launcher.gpus_per_node"
    ]
    two = SLURM | {"tasks_per_node": 2}
    assert one(launcher=two).problems == ["hydra.launcher.tasks_per_node=2 processes would share 1 GPUs: lower it"]
    assert one("device=cpu", launcher=two).problems == []
    assert one(launcher=SLURM | {"gpus_per_node": 2}).notes == [
        "of 2 GPUs on each node, 1 process will use one each: hydra.launcher.tasks_per_node=2 would use them all"
    ]


@pytest.mark.usefixtures("two_nodes")
def test_a_time_limit_that_is_too_short_is_noted() -> None:
    long = ("model=aim_huge", "trainer.epochs=10000")
    (note,) = one(*long, launcher=SLURM | {"timeout_min": 60, "max_num_timeout": 2}).notes
    assert re.fullmatch(
        r"the longest run takes about 14 h \d\d min, but is ended after 3 h 00 min: raise hydra.*", note
    )
    assert one(*long, launcher=SLURM | {"timeout_min": 60, "max_num_timeout": 20}).notes == []


def test_slurm_must_be_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert one(launcher=SLURM).problems == [
        "the launcher submits to SLURM, but there is no SLURM here (no sinfo): do this on a login node"
    ]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert one(launcher=SLURM).problems == [
        "the launcher submits to SLURM, but SLURM does not answer: see what sinfo says"
    ]
    assert one(launcher={"_target_": "LocalLauncher", "tasks_per_node": 2}).problems == []


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:2", 2),
        ("(null)", 0),
        ("gpu", 1),
        ("gpu:a100", 1),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:nvidia_h100_80gb_hbm3:4(S:0,2),gpu:v100:2,nvme:1", 6),
        ("craynetwork:4,gpu:1", 1),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: int) -> None:
    assert gpus_in(gres) == gpus


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", None), ("30:00", 30), ("8:00:00", 480), ("1-00:00:00", 1440), ("2-12:30:00", 3630)],
)
def test_time_limits(limit: str, minutes: int | None) -> None:
    assert minutes_in(limit) == minutes


def test_nodes_listed_by_sinfo() -> None:
    node = Node("main", True, 2, 4, 8000, None, True)
    assert nodes_of(SINFO) == [node, node]
    states = (
        "idle",
        "mixed",
        "allocated",
        "idle~",
        "reserved",
        "down",
        "down*",
        "drained",
        "draining",
        "idle*",
        "failing",
    )
    nodes = nodes_of("\n".join(f"gpu|n1|gpu:a100:8|128+|1031000+|2-00:00:00|{state}" for state in states))
    assert nodes[0] == Node("gpu", False, 8, 128, 1_031_000, 2880, True)
    assert [node.in_service for node in nodes] == [True] * 5 + [False] * 6


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({}, []),
        ({"partition": None}, []),
        ({"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2, "cpus_per_task": 2, "timeout_min": 9999}, []),
        ({"mem_gb": 7}, []),
        ({"partition": "gpu"}, ["hydra.launcher.partition=gpu: there is no such partition; choose from main"]),
        ({"nodes": 3}, ["hydra.launcher.nodes=3: partition main has 2, ask for fewer"]),
        (
            {"gpus_per_node": 4},
            ["hydra.launcher.gpus_per_node=4: partition main has 0 nodes with 4 GPUs (at most 2), 1 must have them"],
        ),
        (
            {"gpus_per_node": None, "gres": "gpu:a100:3"},
            ["hydra.launcher.gres=gpu:a100:3: partition main has 0 nodes with 3 GPUs (at most 2), 1 must have them"],
        ),
        (
            {"cpus_per_task": 3, "tasks_per_node": 2, "mem_gb": 8, "nodes": 2},
            [
                "hydra.launcher.cpus_per_task=3 x tasks_per_node=2: partition main has 0 nodes with 6 CPUs (at most "
                "4), 2 must have them",
                "hydra.launcher.mem_gb=8: partition main has 0 nodes with 8192 MB (at most 8000), 2 must have them",
            ],
        ),
    ],
)
def test_requests_that_a_cluster_does_not_grant(options: dict[str, Any], problems: list[str]) -> None:
    assert not_granted(asked(**options), nodes_of(SINFO)) == problems


def test_nodes_out_of_service_time_limits_and_several_partitions() -> None:
    nodes = nodes_of(SINFO.replace("*", "").replace("infinite|idle\nmain|n2", "1:00:00|down*\nshort|n2"))
    assert [(node.partition, node.minutes, node.in_service) for node in nodes] == [
        ("main", 60, False),
        ("short", None, True),
    ]
    nodes = [replace(nodes[0], in_service=True), nodes[0], nodes[1]]
    assert not_granted(asked(nodes=2, timeout_min=90), nodes) == [
        "hydra.launcher.timeout_min=90: partition main allows 60 minutes, lower it",
        "hydra.launcher.nodes=2: partition main has 1 (1 more are out of service), ask for fewer",
    ]
    assert not_granted(asked(partition=None), nodes) == [
        "hydra.launcher.partition must be given, since none is the default; choose from main, short"
    ]
    assert not_granted(asked(partition="main,short", timeout_min=90), nodes) == []  # short grants it


def test_one_node_must_satisfy_the_whole_request() -> None:
    gpus, cpus = Node("main", True, 4, 8, 8000, None, True), Node("main", True, 0, 64, 8000, None, True)
    assert not_granted(asked(gpus_per_node=4, cpus_per_task=8), [gpus, cpus]) == []
    assert not_granted(asked(gpus_per_node=4, cpus_per_task=16), [gpus, cpus]) == [
        "hydra.launcher.cpus_per_task=16 x tasks_per_node=1: partition main has 0 nodes with 16 CPUs (at most 8), 1 "
        "must have them"
    ]
