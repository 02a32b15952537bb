"""Stores, run folders and experiments whose names hold characters that mean something in addresses."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from semaim.cli import main
from semaim.core.store_address import SQLITE
from semaim.export.mlflow_model import tracked_run
from semaim.report.store import opened
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.tracking.delivery import Delivery
from semaim.tracking.mlflow import MLflow
from semaim.tracking.store import client_uri
from support.tracked import assert_shows_all, delivery_state, mlflow_client, only_run, points_written

ODD = "a b%20c#d?e&f'g\"h;ü"


@pytest.fixture
def odd(finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An oddly named folder with a store, in the working directory; creating a store takes seconds."""
    place = tmp_path / ODD
    place.mkdir()
    shutil.copy(finished[0].parents[1] / "mlflow.db", place / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return place


def tracking(uri: str, experiment: str = "odd/names") -> MLflow:
    return MLflow(uri, experiment, flush_seconds=60, system_metrics_seconds=0)


@pytest.mark.parametrize("address", ["absolute", "relative"])
def test_what_a_run_writes_is_read_from_the_printed_address(
    address: str, finished: tuple[Path, Any], odd: Path
) -> None:
    uri = f"{SQLITE}{odd if address == 'absolute' else ODD}/mlflow.db"
    run_folder = shutil.copytree(finished[0], odd / ODD, ignore=shutil.ignore_patterns("mlflow.json"))
    tracker = tracking(uri)
    tracker.prepare(RunFolder(run_folder))
    command = shlex.split(tracker.view_commands(RunFolder(run_folder))["look at it"])
    assert command[:3] == ["mlflow", "ui", "--backend-store-uri"]
    client = mlflow_client(command[3])
    assert_shows_all(client, run_folder, "FINISHED")
    run_id = only_run(client, "odd/names").info.run_id
    fetched = Path(client.download_artifacts(run_id, "config.yaml", str(odd.parent)))
    assert fetched.read_bytes() == (run_folder / "config.yaml").read_bytes()
    fetched.unlink()
    assert client.get_run(run_id).data.tags["run_folder"] == str(run_folder)
    assert tracker.run_folder(run_id) == run_folder  # checkpoint=mlflow:<run id>
    assert tracked_run(run_folder, run_folder).state["run_id"] == run_id  # semaim export --mlflow
    report = shlex.split(str(tracker.report_command()))
    assert report == ["semaim", "report", "--uri", tracker.address]
    with opened(report[3]):
        import mlflow

        assert mlflow.get_run(run_id).data.tags["run_folder"] == str(run_folder)
    assert main(["sync", str(run_folder), "--uri", uri]) == 0
    assert main(["rm", "--yes", str(run_folder), "--uri", uri]) == 0
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    assert {path.name for path in odd.parent.iterdir()} == {ODD}, "MLflow made no folder of the encoded name"
    assert {path.name for path in odd.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}


def test_a_new_store_with_an_odd_name(tmp_path: Path, finished: tuple[Path, Any]) -> None:
    place = tmp_path / ODD / "new"
    run_folder = shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("mlflow.json"))
    sent = Delivery(RunFolder(run_folder), f"{SQLITE}{place}/x#.db").deliver()
    assert sent == sum(map(len, points_written(run_folder).values()))
    assert {path.name for path in tmp_path.iterdir()} == {ODD, "run"}
    assert {path.name for path in place.iterdir()} == {"x#.db", "x#.db.lock", "mlartifacts"}


def test_an_ordinary_address_is_left_as_it_is() -> None:
    for uri in ("sqlite:///mlflow.db", "sqlite:////data/a b/mlflow.db", "http://host:5000", "postgresql:///mlflow"):
        assert client_uri(uri) == uri


def test_a_run_folder_whose_name_is_not_utf_8(finished: tuple[Path, Any], odd: Path) -> None:
    """MLflow stores UTF-8: the other bytes are written out."""
    run_folder = odd / os.fsdecode(b"run\xff\n")
    shutil.copytree(finished[0], run_folder, ignore=shutil.ignore_patterns("mlflow.json"))
    (run_folder / "environment.json").write_text('{"starts": [{}]}')  # of an earlier version: without a name
    journal = Journal(run_folder / "metrics.jsonl")
    journal.tags({"checkpoint": str(run_folder)})
    journal.status("FINISHED")
    journal.close()
    tracking(f"{SQLITE}{odd}/mlflow.db").prepare(RunFolder(run_folder))
    shown = only_run(mlflow_client(client_uri(f"{SQLITE}{odd}/mlflow.db")), "odd/names")
    assert shown.info.run_name == "run\\udcff\n"
    assert shown.data.tags["checkpoint"] == shown.data.tags["run_folder"] == f"{odd}/run\\udcff\n"
    assert delivery_state(run_folder)["sent"] == (run_folder / "metrics.jsonl").stat().st_size


def test_a_journal_names_no_file_outside_its_folder(finished: tuple[Path, Any], odd: Path) -> None:
    run_folder = shutil.copytree(
        finished[0], odd / "run", ignore=shutil.ignore_patterns("mlflow.json", "metrics.jsonl")
    )
    (odd / "private.txt").write_text("private")
    (run_folder / "link.txt").symlink_to(odd / "private.txt")
    (run_folder / "own.txt").write_text("own")
    journal = Journal(run_folder / "metrics.jsonl")
    for name in ("../private.txt", str(odd / "private.txt"), "link.txt", "own.txt"):
        journal.artifact(name)
    journal.image("private", 1, "../private.txt")
    journal.status("FINISHED")
    journal.close()
    Delivery(RunFolder(run_folder), f"{SQLITE}{odd}/mlflow.db", "odd").deliver()
    client = mlflow_client(client_uri(f"{SQLITE}{odd}/mlflow.db"))
    run_id = delivery_state(run_folder)["run_id"]
    assert [file.path for file in client.list_artifacts(run_id)] == ["config.yaml", "own.txt"]
