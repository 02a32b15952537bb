"""Team tracking: one `mlflow server` over PostgreSQL, set up as in docs/cluster.md, for many runs at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.sweeps.mlflow_parent import open_parent
from semaim.sweeps.sweep import Point, Sweep
from semaim.tracking.mlflow import MLflow, NoTracking
from semaim.tracking.store import unreachable
from support.commands import run, succeed
from support.mlflow_server import PostgreSQL, Server
from support.paths import TESTS
from support.tracked import SYNC, assert_shows_all, delivery_state, mlflow_client

AT_ONCE = (sys.executable, str(TESTS / "support" / "starts_at_once.py"))


def test_mlflow_keeps_a_run_in_postgresql(postgres: PostgreSQL, tmp_path: Path) -> None:
    server = Server(tmp_path, store=postgres.database())
    try:
        server.start()
        client = mlflow_client(server.uri)
        run = client.create_run(client.create_experiment("new"))
        client.log_metric(run.info.run_id, "loss", 0.5, step=3)
        client.set_terminated(run.info.run_id)
        [found] = client.search_runs([run.info.experiment_id])
        assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 0.5})
    finally:
        server.stop()
    assert not list(tmp_path.glob("*.db"))


@pytest.fixture(scope="module")
def server(postgres: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The team's server, which accepts only the host name localhost."""
    place = tmp_path_factory.mktemp("team")
    artifacts = ("--artifacts-destination", str(place / "artifacts"), "--serve-artifacts")
    server = Server(place, postgres.database(), (*artifacts, "--allowed-hosts", "localhost:*"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def uri(server: Server) -> str:
    """URI of the server."""
    return f"http://localhost:{server.port}"


def run_folders(place: Path, names: Iterable[str], parent: Path | None) -> list[Path]:
    """Folders of runs that are about to start, as children of another run."""
    folders = [RunFolder(place / name) for name in names]
    for folder in folders:
        folder.path.mkdir(parents=True)
        folder.store_or_check_config({"parent_run": parent and str(parent)})
        (folder.path / "environment.json").write_text('{"starts": [{}]}')
    return [folder.path for folder in folders]


def sweep_of(place: Path, tracking: MLflow | NoTracking) -> Path:
    """Folder of a sweep that the launching process has just opened."""
    sweep = Sweep("slurm", {}, [Point([], str(place / "run"))], restarts=0, command="of two", path=place / "sweep")
    sweep.save()
    open_parent(sweep, tracking)
    return sweep.path


def shown(client: Any, experiment: str) -> dict[str, tuple[str, str | None]]:
    """Id and parent of every run of an experiment, by name; asserts that names are unique."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {each.info.run_name: (each.info.run_id, each.data.tags.get("mlflow.parentRunId")) for each in found}
    assert len(runs) == len(found)
    return runs


def test_eight_simultaneous_starts_have_correct_parents(uri: str, tmp_path: Path) -> None:
    """Sweep runs are children of the sweep's run, made by the launching process; single runs use a new experiment."""
    client = mlflow_client(uri)
    sweep = sweep_of(tmp_path, MLflow(uri, "swept", flush_seconds=60, system_metrics_seconds=0))
    names = [f"run{i}" for i in range(8)]
    for experiment, parent in (("swept", sweep), ("single", None)):
        folders = run_folders(tmp_path / experiment, names, parent)
        said = succeed(tmp_path, uri, experiment, *map(str, folders), launcher=AT_ONCE)
        assert "MLflow at" not in said, said  # each request succeeded at its first attempt
        found = shown(client, experiment)
        above, _ = found.pop("sweep", (None, None))
        assert above == (delivery_state(sweep)["run_id"] if parent else None)
        assert sorted(found) == names
        assert {under for _, under in found.values()} == {above}
        for folder in folders:
            assert_shows_all(client, folder, "FINISHED")
    assert client.search_runs(["0"]) == [], "MLflow's experiment Default"


def test_runs_without_tracking_are_sent_later_under_their_sweep(uri: str, tmp_path: Path) -> None:
    """Simulates nodes without access to the server; also with the sweep's own folder sent last."""
    sweep = sweep_of(tmp_path, NoTracking())
    (run_folder,) = run_folders(tmp_path, ["run"], sweep)
    journal = Journal(run_folder / "metrics.jsonl")
    journal.log(1, {"train/loss": 0.5, "train/learning_rate": 0.1})
    journal.status("FINISHED")
    journal.close()
    said = succeed(tmp_path, "run", "sweep", "--uri", uri, "--experiment", "later", launcher=SYNC)
    assert said == "run: 2 metric points sent\nsweep: 0 metric points sent\n"
    client = mlflow_client(uri)
    above = delivery_state(sweep)["run_id"]
    assert shown(client, "later") == {"sweep": (above, None), "run": (delivery_state(run_folder)["run_id"], above)}
    assert_shows_all(client, run_folder, "FINISHED")


def test_a_host_name_that_the_server_does_not_accept(server: Server, tmp_path: Path) -> None:
    (run_folder,) = run_folders(tmp_path, ["run"], None)
    name = f"127.0.0.1:{server.port}"
    why = f"the server rejects the host name {name}: start it with --allowed-hosts {name}, or use its own name"
    assert unreachable(server.uri) == why
    tracking = MLflow(server.uri, "refused", flush_seconds=1, system_metrics_seconds=0)
    with pytest.raises(UserError) as refused:
        tracking.prepare(RunFolder(run_folder))
    assert str(refused.value) == f"tracking.uri={server.uri}: {why}; or set tracking=none"
    done = run(tmp_path, "run", "--uri", server.uri, launcher=SYNC)
    assert done.returncode == 2
    assert done.stdout == f"error: MLflow at {server.uri} does not accept the metrics of run: {why}\n"
