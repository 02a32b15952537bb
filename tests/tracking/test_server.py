"""A run loses no data when MLflow is unavailable: not installed, server down, or lost during the run.

The server is a real `mlflow server` on a free port of this machine, with PostgreSQL where installed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from semaim.cli import main
from support.commands import ENVIRONMENT, RUN, journal, losses, run, started, status, succeed
from support.in_process import run_here
from support.mlflow_server import PostgreSQL, Server
from support.paced import PACE, PACED, import_path, set_pace
from support.slurm_runs import SMALL_ANYHOW
from support.tracked import SYNC, TINY, assert_shows_all, delivery_state, mlflow_client, only_run
from support.waiting import PATIENCE, wait_for


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests start and stop."""
    store = None if PostgreSQL.missing() else request.getfixturevalue("postgres").database()
    server = Server(tmp_path_factory.mktemp("server"), store)
    try:
        yield server
    finally:
        server.stop()


def test_run_against_a_server_is_complete(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.start()
    options = ("trainer.max_steps=4", f"tracking.uri={server.uri}", "tracking.experiment=plain", "run_name=plain")
    assert run_here(tmp_path, *TINY, *options) == 0
    client, run_folder = mlflow_client(server.uri), tmp_path / "runs" / "plain"
    state = delivery_state(run_folder)
    page = f"{server.uri}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
    assert f"open {page}?workflowType=machine_learning\n" in capsys.readouterr().err
    assert_shows_all(client, run_folder, "FINISHED")
    run_id = only_run(client, "plain").info.run_id
    (tmp_path / "fetched").mkdir()
    for name in ("config.yaml", "environment.json"):
        fetched = Path(client.download_artifacts(run_id, name, str(tmp_path / "fetched")))
        assert fetched.read_bytes() == (run_folder / name).read_bytes()
    assert not list(tmp_path.rglob("mlruns"))
    assert not list(tmp_path.rglob("mlartifacts"))


def test_run_without_its_server_finishes_and_is_sent_later(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    options = (f"tracking.uri={server.uri}", "tracking.flush_seconds=1", "tracking.experiment=late", "run_name=late")
    options += ("trainer.max_steps=4", "tracking.system_metrics_seconds=0")  # metrics of the steps alone, to count them
    assert run_here(tmp_path, *TINY, *options) == 0
    run_folder = tmp_path / "runs" / "late"
    err = capsys.readouterr().err
    left = len(journal(run_folder))
    assert f"{left} journal lines not yet sent to MLflow at {server.uri}; send them with: semaim sync " in err
    assert status(run_folder)["state"] == "finished"
    assert delivery_state(run_folder)["sent"] == 0

    assert f"semaim sync {run_folder} --uri {server.uri}\n" in err
    assert main(["sync", str(run_folder), "--uri", server.uri]) == 2
    out, err = capsys.readouterr()
    errors = re.findall(r"^error: .*", err, re.MULTILINE)
    assert len(errors) == 1
    assert server.uri in errors[0]
    assert str(run_folder) in errors[0]
    assert "Traceback" not in err + out

    server.start()
    for points in (2 * 13, 0):  # two entries of thirteen metrics, then none
        done = run(tmp_path, "runs/late", "--uri", server.uri, launcher=SYNC)
        assert done.returncode == 0, done.stdout
        assert f"runs/late: {points} metric points sent" in done.stdout
    client = mlflow_client(server.uri)
    assert only_run(client, "late").info.run_name == "late"
    assert_shows_all(client, run_folder, "FINISHED")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "silent"])
def test_server_unavailable_during_a_run(
    how: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed: connections are refused until the restart. Silent (SIGSTOP): connections get no response, to the end.

    Reading images is delayed until the test has made its observations.
    """
    pace, steps = tmp_path / "pace", 400
    for variable, value in {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", PACE: str(pace), **import_path()}.items():
        monkeypatch.setitem(ENVIRONMENT, variable, value)
    set_pace(pace, 0.25 / 16)  # a step has 16 images
    server.start()
    assert server.process is not None
    run_folder = tmp_path / "runs" / how
    options = (f"tracking.uri={server.uri}", f"tracking.experiment={how}", f"run_name={how}")

    def log_contains(words: str) -> bool:
        return words in (run_folder / "run.log").read_text()

    with started(tmp_path, *SMALL_ANYHOW, *PACED, *options, f"trainer.max_steps={steps}") as process:
        wait_for(lambda: delivery_state(run_folder)["sent"] > 5000, "a delivery of metrics")
        server.stop() if how == "killed" else os.killpg(server.process.pid, signal.SIGSTOP)
        wait_for(lambda: log_contains("does not accept the metrics"), "the run to notice")
        sent, last = delivery_state(run_folder)["sent"], max(losses(run_folder))
        wait_for(lambda: last + 40 in losses(run_folder), "ten seconds of training")
        assert delivery_state(run_folder)["sent"] == sent
        if how == "killed":
            server.start()
            wait_for(lambda: log_contains("is reachable again"), "the run to deliver again")
            assert delivery_state(run_folder)["sent"] > sent
        set_pace(pace, 0)
        wait_for(lambda: steps in losses(run_folder), "the last step")
        said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    assert list(losses(run_folder)) == list(range(1, steps + 1))
    assert ("not yet sent" in said) == (how == "silent")
    if how == "silent":  # after SIGCONT it also receives the data sent in the meantime
        os.killpg(server.process.pid, signal.SIGCONT)
        monkeypatch.delitem(ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT")  # a busy server may need longer
        assert "metric points sent" in succeed(tmp_path, str(run_folder), "--uri", server.uri, launcher=SYNC)
    client = mlflow_client(server.uri)
    assert only_run(client, how).info.run_id == delivery_state(run_folder)["run_id"]
    assert_shows_all(client, run_folder, "FINISHED")


def test_untracked_run_needs_no_mlflow(tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError('mlflow is not installed here')\n")
    without = ("env", f"PYTHONPATH={tmp_path}", *RUN)
    done = run(tmp_path, *TINY, "tracking=none", "trainer.max_steps=2", "run_name=plain", launcher=without)
    assert done.returncode == 0, done.stdout
    assert status(tmp_path / "runs" / "plain")["state"] == "finished"
    assert not (tmp_path / "runs" / "plain" / "mlflow.json").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_tracked_run_without_mlflow_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # importing it raises ImportError
    assert run_here(tmp_path, *TINY, "trainer.max_steps=2", "run_name=tracked") == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "error: MLflow is not installed: pip install mlflow, or run with tracking=none" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists(), "found before anything is written"
