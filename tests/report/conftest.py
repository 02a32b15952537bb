"""A store of evaluations and a report of it, for all tests in this folder."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from semaim.cli import main
from support.evaluations import Store, fill_with_digits, fill_with_imagenet


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that no test changes."""
    store = Store(tmp_path_factory.mktemp("store") / "mlflow.db")
    fill_with_digits(store)
    fill_with_imagenet(store)
    return store


@pytest.fixture
def empty_copy(store: Store, tmp_path: Path) -> Store:
    """A store without runs, copied because creating one takes seconds."""
    with sqlite3.connect(shutil.copy(store.path, tmp_path / "mlflow.db")) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    return Store(tmp_path / "mlflow.db")


@pytest.fixture(scope="session")
def written(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a full report, and the output of its command."""
    folder = tmp_path_factory.mktemp("written") / "a" / "report"
    with redirect_stdout(StringIO()) as said:
        assert main(["report", "--uri", store.uri, "--output", str(folder)]) == 0
    return folder, said.getvalue()
