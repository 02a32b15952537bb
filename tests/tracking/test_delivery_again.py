"""What is sent again, after an interruption or on request, is in MLflow once, with the correct status."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import BAD_REQUEST, MlflowException

from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.tracking.delivery import Delivery
from semaim.tracking.store import SQLITE
from semaim.tracking.sync import sync
from support.commands import journal, measured, run, started, status
from support.tracked import (
    SYNC,
    TINY,
    assert_shows_all,
    delivery_state,
    mlflow_client,
    only_run,
    points_shown,
    points_written,
)
from support.waiting import PATIENCE, wait_for


def test_sending_twice_adds_nothing(finished: tuple[Path, Any]) -> None:
    run_folder, client = finished
    state = delivery_state(run_folder)
    assert sync(run_folder, None) == 0
    (run_folder / "mlflow.json").write_text(json.dumps(state | {"sent": 0}))
    assert sync(run_folder, None) == sum(len(points) for points in points_written(run_folder).values())
    assert delivery_state(run_folder) == state
    assert_shows_all(client, run_folder, "FINISHED")


@pytest.mark.parametrize(("conflicts", "arrive"), [(2, True), (99, False)])
def test_points_that_an_earlier_request_still_stores_are_sent_again(
    finished: tuple[Path, Any], tmp_path: Path, conflicts: int, arrive: bool
) -> None:
    """A server that did not answer in time goes on with its request; the database refuses the same points meanwhile."""
    run_folder = shutil.copytree(finished[0], tmp_path / "copy")
    (run_folder / "mlflow.json").unlink()  # a run that no store has
    delivery = Delivery(RunFolder(run_folder), f"{SQLITE}{tmp_path}/other.db")
    shutil.copy(finished[0].parents[1] / "mlflow.db", tmp_path / "other.db")  # creating one takes seconds
    real, refused = mlflow_client(f"{SQLITE}{tmp_path}/other.db").log_batch, []

    def log_batch(run_id: str, **content: Any) -> None:
        if "metrics" in content and len(refused) < conflicts:
            refused.append(content)
            raise MlflowException("duplicate key value", BAD_REQUEST)
        real(run_id, **content)

    with mock.patch.object(MlflowClient, "log_batch", side_effect=log_batch), mock.patch("time.sleep"):
        if arrive:
            assert delivery.deliver() == sum(map(len, points_written(run_folder).values()))
        else:
            with pytest.raises(MlflowException, match="duplicate key value"):
                delivery.deliver()
    assert len(refused) == (2 if arrive else 6)
    shown = points_shown(mlflow_client(f"{SQLITE}{tmp_path}/other.db"), delivery_state(run_folder)["run_id"])
    assert shown == (points_written(run_folder) if arrive else {})


def test_interrupted_creation_is_found_again(
    finished: tuple[Path, Any], store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = tmp_path / "runs" / "cut"
    shutil.copytree(finished[0], run_folder, ignore=shutil.ignore_patterns("mlflow.json"))
    uri = f"{SQLITE}{tmp_path}/mlflow.db"
    delivery = Delivery(RunFolder(run_folder), uri, "interrupted")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", mock.Mock(side_effect=OSError("unplugged")))
        with pytest.raises(OSError, match="unplugged"):
            delivery.deliver()
    begun = only_run(store, "interrupted")
    assert (begun.info.status, begun.data.metrics) == ("RUNNING", {})
    assert delivery_state(run_folder)["run_id"] is None
    sync(run_folder, None)
    assert only_run(store, "interrupted").info.run_id == begun.info.run_id == delivery_state(run_folder)["run_id"]
    assert_shows_all(store, run_folder, "FINISHED")
    (run_folder / "mlflow.json").write_text(json.dumps(delivery_state(run_folder) | {"run_id": None, "sent": 0}))
    sync(run_folder, None)
    assert only_run(store, "interrupted").info.run_id == begun.info.run_id
    assert_shows_all(store, run_folder, "FINISHED")
    artifacts = {file.path for file in store.list_artifacts(begun.info.run_id)}
    assert artifacts == {"config.yaml", "environment.json"}


def test_experiment_made_by_another_process_meanwhile_is_used(
    finished: tuple[Path, Any], store: Any, tmp_path: Path
) -> None:
    run_folder = tmp_path / "runs" / "late"
    shutil.copytree(finished[0], run_folder, ignore=shutil.ignore_patterns("mlflow.json"))
    experiment = store.get_experiment_by_name("trials")
    with mock.patch("mlflow.MlflowClient.get_experiment_by_name", side_effect=[None, experiment]):
        Delivery(RunFolder(run_folder), f"{SQLITE}{tmp_path}/mlflow.db", "trials").deliver()
    assert store.get_run(delivery_state(run_folder)["run_id"]).info.experiment_id == experiment.experiment_id
    assert_shows_all(store, run_folder, "FINISHED")


@pytest.mark.slow
def test_killed_stopped_and_continued_is_one_run(store: Any, tmp_path: Path) -> None:
    run_folder = tmp_path / "runs" / "cut"
    command = (*TINY, "run_name=cut", "trainer.save_every_steps=5", "tracking.system_metrics_seconds=0.5")

    def last_step() -> int:
        return max((line["step"] for line in measured(run_folder) if "train/loss" in str(line)), default=0)

    with started(tmp_path, *command) as process:
        wait_for(lambda: delivery_state(run_folder)["sent"] > 500 and status(run_folder).get("step"), "a delivery")
        sync(run_folder, f"{SQLITE}{tmp_path}/mlflow.db")  # of a live run: delivers, and keeps its status
        run_id = delivery_state(run_folder)["run_id"]
        assert store.get_run(run_id).info.status == "RUNNING"
        process.kill()
        process.wait(30)
    assert process.returncode == -signal.SIGKILL
    assert [line["status"] for line in journal(run_folder) if "status" in line] == ["RUNNING"]
    killed_after = last_step()
    done = run(tmp_path, "runs/cut", launcher=SYNC)
    assert done.returncode == 0, done.stdout
    assert "metric points sent" in done.stdout
    assert status(run_folder)["state"] == "vanished"
    assert_shows_all(store, run_folder, "KILLED")

    with started(tmp_path, *command) as process:
        wait_for(lambda: last_step() > killed_after, "steps after those that were made before")
        process.terminate()
        said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 75, said
    assert_shows_all(store, run_folder, "KILLED")

    last = last_step() + 4
    done = run(tmp_path, *command, f"trainer.max_steps={last}")
    assert done.returncode == 0, done.stdout
    assert_shows_all(store, run_folder, "FINISHED")
    assert delivery_state(run_folder)["run_id"] == run_id
    assert only_run(store, "semaim").info.run_id == run_id
    shown = points_shown(store, run_id)
    assert [step for step, _, _ in shown["train/loss"]] == list(range(2, last + 1, 2))
    statuses = [line["status"] for line in journal(run_folder) if "status" in line]
    assert statuses == ["RUNNING", "KILLED", "RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= set(shown)
    samples = [step for step, _, _ in shown["system/process_memory_megabytes"]]
    assert samples == list(range(len(samples)))


def test_sync_marks_only_dead_runs(tmp_path: Path, store: Any) -> None:
    """A folder whose process is dead is marked KILLED once, however often it is sent."""
    run_folder = RunFolder(tmp_path / "runs" / "dead")
    run_folder.path.mkdir(parents=True)
    run_folder.store_or_check_config({f"option{number}": number for number in range(250)})  # MLflow takes 100 at a time
    run_folder.set_status("running", step=3)
    (run_folder.path / "environment.json").write_text('{"starts": [{}]}')
    lines = Journal(run_folder.journal)
    lines.status("RUNNING")
    lines.log(3, {"train/loss": 0.5})
    lines.close()
    uri = f"{SQLITE}{tmp_path}/mlflow.db"
    assert [sync(run_folder.path, uri), sync(run_folder.path, None)] == [1, 0]
    assert_shows_all(store, run_folder.path, "KILLED")
    assert len(only_run(store, "semaim").data.params) == 250
    assert [line["status"] for line in journal(run_folder.path) if "status" in line] == ["RUNNING", "KILLED"]
