"""A run folder does not decide which server receives the user's password, or which file is written."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semaim.cli import main
from semaim.core.store_address import SQLITE
from semaim.runs.folder import RunFolder
from semaim.sweeps.sweep import Point, Sweep
from semaim.tasks.evaluation import log_to_pretraining
from semaim.tracking import store
from semaim.tracking.store import sync_command
from support.folders import contents
from support.tracked import delivery_state


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener that must receive no connection, while the user's password is in the environment."""
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "mine")
    monkeypatch.setattr(store, "_named", set())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture(params=["http", "sqlite"])
def foreign(
    request: pytest.FixtureRequest,
    listener: socket.socket,
    finished: tuple[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, str]:
    """A run folder from elsewhere, in the working directory, and the address of a store in it."""
    other = f"http://127.0.0.1:{listener.getsockname()[1]}" if request.param == "http" else f"{SQLITE}{tmp_path}/not.db"
    folder = shutil.copytree(finished[0], tmp_path / "foreign")
    (folder / "mlflow.json").write_text(json.dumps(delivery_state(folder) | {"uri": other}))
    monkeypatch.chdir(tmp_path)
    return folder, other


@pytest.mark.parametrize("command", [["sync"], ["rm", "--yes"], ["export", "--mlflow"]])
def test_commands_ask_for_the_store(
    command: list[str], foreign: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, other = foreign
    before = contents(folder)
    assert main([*command, str(folder)]) == 2
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert f"names the MLflow store {other}, which is not the configured one ({SQLITE}{Path.cwd()}/mlflow.db)" in line
    assert f"give --uri {other}, or set tracking.uri in site.yaml" in line
    assert "Traceback" not in out + err
    assert contents(folder) == before
    assert {path.name for path in folder.parent.iterdir()} == {"foreign"}


def test_what_is_sent_without_being_asked_for_is_not_sent_there(
    foreign: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    """`semaim status` and evaluations correct the MLflow run of a folder, if it is in a store of the user."""
    folder, other = foreign
    sent = delivery_state(folder)
    log_to_pretraining(RunFolder(folder), 6, {"eval/knn_10_mean": 50.0})
    assert "eval/knn_10_mean" in (folder / "metrics.jsonl").read_text()
    assert delivery_state(folder) == sent
    assert f"names the MLflow store {other}" in caplog.text
    assert f"give --uri {other}" in caplog.text


def test_the_status_of_a_dead_run_is_not_sent_there(
    foreign: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, other = foreign
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    sent = delivery_state(folder)
    assert main(["status", str(folder)]) == 1
    out, err = capfd.readouterr()
    assert "vanished" in out
    assert f"give --uri {other}" in err
    assert delivery_state(folder) == sent


def test_a_store_that_the_user_names_is_used(
    foreign: tuple[Path, str], finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --uri, or by the configuration of the site."""
    folder, _ = foreign
    own = f"{SQLITE}{tmp_path}/own.db"
    shutil.copy(finished[0].parents[1] / "mlflow.db", tmp_path / "own.db")
    assert sync_command(folder, own) == f"semaim sync {folder} --uri {own}"
    assert main(["sync", str(folder), "--uri", own]) == 0
    monkeypatch.setattr(store, "_named", set())
    assert main(["sync", str(folder)]) == 2
    monkeypatch.setattr(store, "configured_store", lambda: own)
    assert sync_command(folder, own) == f"semaim sync {folder}"
    assert main(["sync", str(folder)]) == 0


def test_the_configured_store_is_that_of_the_site(set_site: Callable[[str], None]) -> None:
    set_site("tracking: {uri: 'http://mlflow.example.org:5000/'}")
    assert store.configured_store() == "http://mlflow.example.org:5000"


def test_the_commands_of_another_user_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The launcher's `setup` is of commands of the shell."""
    launcher = {"setup": [f"touch {tmp_path}/ran"]}
    Sweep("local", launcher, [Point([], str(tmp_path / "run"))], 0, "semaim run -m", path=tmp_path / "sweep").save()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    assert main(["retry", "--failed", str(tmp_path / "sweep")]) == 2
    assert f"error: {tmp_path}/sweep is of another user, whose commands would run as yours" in capfd.readouterr().err
    assert not (tmp_path / "sweep" / "jobs").exists()


def test_a_link_in_a_folder_does_not_empty_another_file(
    tmp_path: Path, finished: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    run = shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".mlflow.lock"))
    (run / ".lock").symlink_to(mine)
    (run / ".mlflow.lock").symlink_to(mine)
    assert main(["sync", str(run), "--uri", f"{SQLITE}{tmp_path}/own.db"]) == 1
    assert f"{run}/.mlflow.lock cannot be written" in capfd.readouterr().err
    assert main(["rm", "--yes", "--keep-mlflow", str(run)]) == 1
    assert f"{run}/.lock cannot be written" in capfd.readouterr().err
    assert mine.read_text() == "mine"
