"""Content of a run in MLflow, read with MLflow's own client, for comparison with the run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.commands import journal

SYNC = (sys.executable, "-m", "semaim", "sync")
TINY = (
    "trainer.batch_size=16",
    "trainer.log_every_steps=2",
    "evaluators=[]",
)
Points = dict[str, list[tuple[int, float, int]]]


def mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def delivery_state(run_folder: Path) -> dict[str, Any]:
    """Content of mlflow.json: run_id, uid, number of journal bytes sent."""
    path = run_folder / "mlflow.json"
    return json.loads(path.read_text()) if path.exists() else {"sent": 0}


def points_written(run_folder: Path) -> Points:
    """Step, value and time of each metric in the journal."""
    points: Points = {}
    for line in journal(run_folder):
        for key, value in line.get("metrics", {}).items():
            points.setdefault(key, []).append((line["step"], value, line["time"]))
    return points


def points_shown(client: Any, run_id: str) -> Points:
    """Step, value and time of each metric in MLflow."""
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, key)) for key in keys}


def assert_shows_all(client: Any, run_folder: Path, status: str) -> None:
    """The MLflow run has this status and exactly the points of its journal; no step occurs twice."""
    run_id = delivery_state(run_folder)["run_id"]
    shown = points_shown(client, run_id)
    assert shown == points_written(run_folder)
    for key, points in shown.items():
        assert len({step for step, _, _ in points}) == len(points), key
    info = client.get_run(run_id).info
    title = json.loads((run_folder / "environment.json").read_text())["starts"][0].get("title", run_folder.name)
    assert (info.status, info.run_name) == (status, title)
    last = next(line for line in reversed(journal(run_folder)) if "status" in line)
    assert last["status"] == status
    assert info.end_time == last["time"]
    assert info.start_time == journal(run_folder)[0]["time"]


def only_run(client: Any, experiment: str) -> Any:
    """The only run of an experiment."""
    (found,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return found
