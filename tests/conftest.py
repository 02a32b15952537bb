"""Fixtures for several test files: small seeded models and images, a SLURM cluster, a PostgreSQL server.

The golden files are in tests/golden/*.npz.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semaim.config import compose
from semaim.data.image_sets import FileImages
from semaim.models.aim import AIM
from semaim.runs.context import Run
from support import slurm
from support.evaluating import surroundings
from support.in_process import logging_left_as_found
from support.mlflow_server import PostgreSQL
from support.scheduling import ByFile, longest_first

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # tensors are small: threads only add overhead, and pytest-xdist starts its own processes


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Restore logging: commands in the test process log to that test's standard error, which is closed afterwards."""
    with logging_left_as_found():
        yield


@pytest.fixture(autouse=True)
def _modules_of_one_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget modules that the test imported from a temporary folder: the next test's `my_orders` is another file."""
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        file = getattr(sys.modules[name], "__file__", None)  # None of a package without code
        if file is not None and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
            del sys.modules[name]


@pytest.fixture
def set_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the site's settings of this test: `set_site("runs_dir: /scratch")`."""

    def write(content: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "site.yaml").write_text(f"# @package _global_\n{content}\n")
        monkeypatch.setenv("SEMAIM_SITE", str(folder))
        compose._options.cache_clear()  # a program has one site

    yield write
    compose._options.cache_clear()


@pytest.fixture
def tiny_model() -> Callable[..., AIM]:
    """Factory of small models: `tiny_model(depth=2, seed=1)`; accepts any argument of AIM."""

    def make(seed: int = 0, **overrides: Any) -> AIM:
        sizes = {"out_channels": 48, "image_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AIM(**{**sizes, "query_depth": 2, **overrides})
            with torch.no_grad():  # zero biases and unit scales would hide errors in their use
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Factory of normally distributed images (batch, 3, height, width), identical at every call."""

    def make(batch: int = 2, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """The `Run` argument of a task, for one process."""
    with surroundings(tmp_path / "run") as run:
        yield run


@pytest.fixture
def damaged(tmp_path: Path) -> FileImages:
    """Six images; images 2 and 5 are unreadable."""
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_text("no image")
    return FileImages(tmp_path, [f"{i}.png" for i in range(6)], list(range(6)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """With several processes and `--dist loadscope`, tests that may share a fixture run in the same process."""
    return ByFile(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """The cluster shared by all tests; tests use the fixture `cluster`."""
    if reason := slurm.missing():
        pytest.skip(reason)
    cluster = slurm.Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder / "mariadb", ignore_errors=True)  # 100 MB; the logs are kept


@pytest.fixture
def cluster(running_cluster: slurm.Cluster) -> Iterator[slurm.Cluster]:
    """A SLURM cluster with an empty queue, used by this process and by the processes of commands.py."""
    with slurm.used(running_cluster):
        yield running_cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A PostgreSQL server; each call of `database` creates a new database."""
    if reason := PostgreSQL.missing():
        pytest.skip(reason)
    postgres = PostgreSQL()
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.stop()
