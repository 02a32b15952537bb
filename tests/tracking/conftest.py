"""A finished run, its store, and a copy of the store, for the tests of deliveries."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from semaim.tracking.store import SQLITE
from support.in_process import run_here
from support.tracked import TINY, mlflow_client


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder of a finished run of six steps, and a client of its store, a new SQLite file in the working directory."""
    place = tmp_path_factory.mktemp("finished")
    assert run_here(place, *TINY, "trainer.max_steps=6", "tracking.experiment=trials") == 0
    (run_folder,) = (place / "runs").iterdir()
    return run_folder, mlflow_client(f"{SQLITE}{place}/mlflow.db")


@pytest.fixture
def store(tmp_path: Path, finished: tuple[Path, Any]) -> Any:
    """A client of a store in this test's folder, copied from the finished run's, since creating one takes seconds."""
    shutil.copy(finished[0].parents[1] / "mlflow.db", tmp_path / "mlflow.db")
    return mlflow_client(f"{SQLITE}{tmp_path}/mlflow.db")
