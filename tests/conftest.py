"""Fixtures that several test files use: small seeded models and images, a SLURM cluster, a PostgreSQL.

Golden files lie in tests/golden/*.npz.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semaim.data.image_sets import FileImages
from semaim.models.aim import AIM
from semaim.runs.context import Run
from support import slurm
from support.evaluating import surroundings
from support.in_process import logging_left_as_found
from support.mlflow_server import PostgreSQL
from support.scheduling import ByFile

os.environ["SEMAIM_SITE"] = "/nowhere"  # the settings of whoever runs the tests are not for them
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # tensors here are small: threads only cost, and pytest-xdist brings its own processes


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Commands run in the tests' own process send messages to the screen of that test, which is gone afterwards."""
    with logging_left_as_found():
        yield


@pytest.fixture
def tiny_model() -> Callable[..., AIM]:
    """Factory of small models: `tiny_model(depth=2, seed=1)`; any argument of AIM can be given."""

    def make(seed: int = 0, **overrides: Any) -> AIM:
        sizes = {"out_channels": 48, "image_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AIM(**{**sizes, "query_depth": 2, **overrides})
            with torch.no_grad():  # zero biases and unit scales would hide a bias or a scale applied wrongly
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Factory of normally distributed images (batch, 3, height, width), the same at every call."""

    def make(batch: int = 2, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """What a task runs in, on one process."""
    with surroundings(tmp_path / "run") as run:
        yield run


@pytest.fixture
def damaged(tmp_path: Path) -> FileImages:
    """Six images, of which 2 and 5 cannot be read."""
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_text("no image")
    return FileImages(tmp_path, [f"{i}.png" for i in range(6)], list(range(6)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """With several processes and `--dist loadscope`, tests that may share a fixture run in one of them."""
    return ByFile(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """The cluster of all tests; they ask for `cluster`."""
    if reason := slurm.missing():
        pytest.skip(reason)
    cluster = slurm.Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder / "mariadb", ignore_errors=True)  # 100 MB; the logs stay


@pytest.fixture
def cluster(running_cluster: slurm.Cluster) -> Iterator[slurm.Cluster]:
    """A SLURM cluster with an empty queue, which this process and those of commands.py use."""
    with slurm.used(running_cluster):
        yield running_cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A PostgreSQL that makes a new database whenever it is asked."""
    if reason := PostgreSQL.missing():
        pytest.skip(reason)
    postgres = PostgreSQL()
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.stop()
