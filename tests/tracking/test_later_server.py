"""A sweep that is submitted while its MLflow server is down is complete in MLflow when the server has come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semaim.runs.folder import RunFolder
from semaim.tracking.mlflow import MLflow
from support.commands import PATIENCE, SMALL, run, start, sweep_folder
from support.mlflow_server import Server
from support.tracked import SYNC, delivery_state, mlflow_client

OPTIONS = (*SMALL[1:], "trainer.max_steps=2", "tracking.experiment=late", "tracking.flush_seconds=0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is down."""
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.stop()


def assert_complete(server: Server, home: Path, children: int) -> None:
    """The experiment holds the run of the sweep and its children, each once, and no other experiment has runs."""
    client = mlflow_client(server.uri)
    used = [each for each in client.search_experiments() if client.search_runs([each.experiment_id])]
    assert [each.name for each in used] == ["late"]
    runs = client.search_runs([used[0].experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name.startswith("seed (2 runs)")
    assert parent.data.tags["run_folder"] == str(sweep_folder(home))
    assert parent.info.run_id == delivery_state(sweep_folder(home))["run_id"]
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs if run is not parent] == [
        parent.info.run_id
    ] * children
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_sweep_starts_without_its_server_and_is_sent_later(server: Server, tmp_path: Path) -> None:
    words = ("-m", "seed=0,1", f"tracking.uri={server.uri}", *OPTIONS)
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert done.stdout.endswith("start it, or set tracking=none, or deliver later (sweep.check=false)\n"), done.stdout
    assert not list((tmp_path / "runs").glob("*/sweep.json"))

    done = run(tmp_path, *words, "sweep.check=false")
    assert done.returncode == 0, done.stdout
    why = "[Errno 111] Connection refused"
    warning = f"MLflow at {server.uri} does not answer ({why}); the sweep starts all the same. Its runs send it and"
    assert done.stdout.count(warning) == 1
    assert f"what is left then, send with: semaim sync --uri {server.uri} runs/*\n" in done.stdout
    server.start()
    folders = [each for each in (tmp_path / "runs").iterdir() if (each / "config.yaml").exists()]
    at_once = [start([*SYNC, folder, "--uri", server.uri], tmp_path) for folder in folders]
    said = "".join(process.communicate(timeout=PATIENCE)[0] for process in at_once)
    assert [process.wait() for process in at_once] == [0, 0, 0], said
    assert_complete(server, tmp_path, children=2)


def test_a_server_that_dies_after_the_check_is_no_obstacle(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "runs" / "sweep")
    folder.path.mkdir(parents=True)
    tracking = MLflow(server.uri, "late", flush_seconds=0, system_metrics_seconds=0)
    tracking.prepare(folder)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("semaim")]
    assert said.startswith(f"MLflow at {server.uri} does not answer (")
    known = delivery_state(folder.path)
    assert (known["run_id"], known["experiment"]) == (None, "late")
    tracking.prepare(folder)
    assert delivery_state(folder.path)["uid"] == known["uid"], "all runs know the same parent"
