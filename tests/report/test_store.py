"""The report reads a store without changing it, and reports why a store cannot be read."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.errors import UserError
from semaim.report import report
from semaim.report.store import opened, read, readable
from semaim.tracking.store import SQLITE
from support.evaluations import REPORT, Store, fails
from support.waiting import PATIENCE


def test_evaluations_of_all_experiments_are_read(store: Store) -> None:
    with opened(store.uri):
        runs = read([])
    assert runs["run_id"].nunique() == len(runs) == 19
    assert runs["start_time"].is_monotonic_increasing


def test_the_configured_store_is_the_default(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "configured_store", lambda: store.uri)
    assert main(["report", "--output", str(tmp_path)]) == 0
    monkeypatch.setattr(report, "configured_store", lambda: None)
    assert main(["report", "--output", str(tmp_path)]) == 2


def test_store_is_not_changed(store: Store, tmp_path: Path) -> None:
    before = store.path.read_bytes(), store.contents(), sorted(store.path.parent.iterdir())
    assert main(["report", "--uri", store.uri, "--output", str(tmp_path)]) == 0
    assert (store.path.read_bytes(), store.contents(), sorted(store.path.parent.iterdir())) == before


def test_missing_file_is_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(capsys)
    assert f"--uri={SQLITE}{tmp_path}/mlflow.db: there is no file {tmp_path}/mlflow.db" in message
    assert "Traceback" not in message
    fails(capsys, "--uri", f"{SQLITE}{tmp_path}/no/such/folder.db")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database" * 1000)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    for name in ("empty.db", "text.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        message = fails(capsys, "--uri", f"{SQLITE}{tmp_path / name}", "--output", str(tmp_path / "report"))
        assert f"--uri={SQLITE}{tmp_path / name} cannot be read as an MLflow store" in message
        assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = '0a8213491aaa'",
        "DELETE FROM experiments WHERE name = 'Default'",  # MLflow adds it to every store that it opens
    ],
)
def test_store_that_needs_changing_is_not_changed(
    empty_copy: Store, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    with sqlite3.connect(empty_copy.path) as database:
        database.execute(change)
    before = empty_copy.path.read_bytes()
    assert f"mlflow db upgrade {empty_copy.uri}" in fails(capsys, "--uri", empty_copy.uri)
    assert empty_copy.path.read_bytes() == before


def test_names_with_odd_characters(store: Store, tmp_path: Path) -> None:
    odd = tmp_path / "a b?mode=rw#100%.db"
    shutil.copy(store.path, odd)
    with opened(f"{SQLITE}{odd}"):
        assert len(read(["big"])) == 3


@pytest.mark.parametrize("uri", ["mlflow.db", "file:///tmp/mlruns", "sqlite://mlflow.db", ""])
def test_addresses_that_are_no_store(uri: str) -> None:
    with pytest.raises(UserError, match=r"is no MLflow store: give sqlite:///<file> or http://<server>"):
        readable(uri)


def test_server_out_of_reach(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run([*REPORT, "--uri", uri], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --uri={uri} cannot be read as an MLflow store (")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
