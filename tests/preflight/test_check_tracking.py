"""Checks of the tracking server and the disk by `semaim check`."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

from semaim.preflight.check import check_sweep
from semaim.tracking import store
from support.checking import one


class Health(http.server.BaseHTTPRequestHandler):
    """A server with a health endpoint."""

    status = 200
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """URI of the server."""
    Health.asked.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_a_tracking_server_is_queried_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [[f"seed={seed}", f"tracking.uri={server}/"] for seed in (0, 1)]
    assert check_sweep(points).problems == []
    assert Health.asked == ["/health", "/api/2.0/mlflow/experiments/search"]
    monkeypatch.setattr(Health, "status", 503)
    assert check_sweep(points).problems == [
        f"tracking.uri={server}/: the server answers 503 Service Unavailable; repair it, or set tracking=none, "
        f"or deliver later (sweep.check=false)"
    ]


def test_a_tracking_server_with_authentication(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses of MLflow's basic-auth app; its /health needs no authentication."""
    mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
    monkeypatch.setattr(Health, "status", 401)
    assert store.unreachable(server) == f"the server requires a password: {mend}"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert store.unreachable(server) == f"the server does not know user ada with this password: {mend}"
    monkeypatch.setattr(Health, "status", 403)
    assert store.unreachable(server) == (
        "the server does not allow user ada to do this: its administrator must grant the permission EDIT"
    )


def test_an_unreachable_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one("tracking.uri=http://127.0.0.1:9").problems == [
        "tracking.uri=http://127.0.0.1:9: no server answers ([Errno 111] Connection refused); start it, or set "
        "tracking=none"
    ]
    monkeypatch.setattr(store, "HEALTH_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        assert one(uri).problems == [f"{uri}: no server answers (timed out); start it, or set tracking=none"]


def test_a_tracking_file_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    assert one("tracking.uri=sqlite:///new/mlflow.db").problems == []
    assert one("tracking.uri=sqlite:///text.txt/mlflow.db").problems == [
        "tracking.uri=sqlite:///text.txt/mlflow.db: this file cannot be written; choose another, or set tracking=none"
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["text.txt"]


def test_checkpoints_must_fit_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [["then=[finetune]"]]
    finetune = 4 * (452_352 + 10 * 97 + 65 * 96) * 3 * 2  # weights and moments, one kept and one more
    needed = 4 * 731_760 * 3 * 3 + finetune
    disk = mock.Mock(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert check_sweep(points).problems == []
    disk.free -= 1
    (problem,) = check_sweep(points).problems
    assert problem.startswith("the checkpoints will take 37.")
    assert "make room" in problem
