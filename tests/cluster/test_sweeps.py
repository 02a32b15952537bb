"""Blocking sweeps on a real SLURM: submitted as one array, with evaluations after it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from support.commands import status, sweep_folder
from support.slurm import Cluster
from support.slurm_runs import ON_CPU, SMALL_ANYHOW, run_semaim

pytestmark = pytest.mark.slow
SHORT = (*SMALL_ANYHOW, *ON_CPU, "trainer.max_steps=4", "sweep.check=false")


def points(home: Path) -> list[dict[str, Any]]:
    return json.loads((sweep_folder(home) / "sweep.json").read_text())["points"]


def results(home: Path) -> list[dict[str, str]]:
    with open(sweep_folder(home) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


HEADS = (1, 2, 4, 8, 16, 32, 5, 7)  # the last two do not divide the width of 32


@pytest.fixture(scope="module")
def eight(cluster_of_file: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Working directory of a sweep of eight runs, two of which fail, and the command's output.

    All runs start at the same moment, with a new store.
    """
    home = tmp_path_factory.mktemp("eight")
    options = (f"model.num_heads={','.join(map(str, HEADS))}", "tracking.experiment=eight", "tracking.flush_seconds=60")
    return home, run_semaim(cluster_of_file, home, "semaim.run", "-m", *SHORT, *options, expect=1)


def test_array_of_eight_of_which_two_fail(eight: tuple[Path, str]) -> None:
    home, said = eight
    found = results(home)
    assert [row["state"] for row in found] == ["finished"] * 6 + ["failed"] * 2
    assert all(float(row["loss"]) > 0 for row in found[:6])
    assert [row["error"] for row in found[6:]] == [
        f"model.num_heads={heads} must divide model.embed_dim=32" for heads in HEADS[6:]
    ]
    (array,) = {point["job"].split("_")[0] for point in points(home)}
    assert [point["job"].split("_")[1] for point in points(home)] == [str(number) for number in range(8)]
    table = said[said.rindex("result, progress or reason") :]
    for number, heads in enumerate(HEADS[:6]):
        assert re.search(rf"\nmodel.num_heads={heads} +{array}_{number} +finished +train/loss [\d.]+", table)
    for heads in HEADS[6:]:
        assert re.search(rf"\nmodel.num_heads={heads} +\S+ +failed +model.num_heads={heads} must divide", table)
    assert "error: 2 of 8 runs did not finish" in table


def shown_in_mlflow(home: Path, experiment: str) -> tuple[Any, list[Any]]:
    """The MLflow run of a sweep and its child runs; the store contains nothing else."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (found,) = [each for each in client.search_experiments() if client.search_runs([each.experiment_id])]
    assert found.name == experiment
    runs = client.search_runs([found.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return parent, [run for run in runs if run is not parent]


def test_runs_of_an_array_are_children_of_their_sweep_in_mlflow(eight: tuple[Path, str]) -> None:
    home, _ = eight
    parent, children = shown_in_mlflow(home, "eight")
    assert len(children) == 6
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in children} == {"FINISHED"}
    (array,) = {point["job"].split("_")[0] for point in points(home)}
    assert {run.data.tags["slurm.job"] for run in children} == {f"{array}_{i}" for i in range(6)}
    assert {run.data.tags["slurm.array_index"] for run in children} == {str(i) for i in range(6)}
    assert all(re.fullmatch("n[12]", run.data.tags["slurm.nodes"]) for run in children)
    assert {run.data.tags["slurm.restarts"] for run in children} == {"0"}


def test_the_run_of_a_sweep_summarises_its_array_in_mlflow(eight: tuple[Path, str]) -> None:
    home, _ = eight
    parent, _ = shown_in_mlflow(home, "eight")
    assert parent.info.status == "FAILED"
    losses = [float(row["loss"]) for row in results(home)[:6]]
    summary = {"sweep/finished": 6, "sweep/failed": 2, "sweep/best_loss": min(losses)}
    assert summary.items() <= parent.data.metrics.items()
    assert parent.data.metrics["sweep/mean_loss"] == pytest.approx(sum(losses) / 6)
    said = parent.data.tags["mlflow.note.content"]
    assert said.startswith(f"**Sweep** of 8 runs over model.num_heads = {', '.join(f'`{heads}`' for heads in HEADS)}")
    for heads, loss in zip(HEADS, losses, strict=False):
        assert f"| `model.num_heads={heads}` | finished | {loss:.4g} |" in said
    assert "| `model.num_heads=5` | failed: model.num_heads=5 must divide model.embed_dim=32 |" in said


def test_evaluations_depend_on_their_pretraining(cluster: Cluster, tmp_path: Path) -> None:
    """The second pretraining has an infinite loss; its evaluations do not run."""
    options = (*SHORT, "then=[knn,linprobe]", "optimizer.base_lr=1e-3,1e30", "trainer.max_steps=4")
    said = run_semaim(cluster, tmp_path, "semaim.run", "-m", *options, expect=1)
    found = results(tmp_path)
    assert [row["state"] for row in found] == ["finished"] * 3 + ["failed", "interrupted", "interrupted"]
    assert "is not finite" in found[3]["error"]
    assert found[4]["error"] == found[5]["error"] == "CANCELLED: DependencyNeverSatisfied"
    assert "error: 3 of 6 runs did not finish" in said
    by_folder = {point["run_dir"]: point["job"] for point in points(tmp_path)}
    assert len({job.split("_")[0] for job in by_folder.values()}) == 3, "three arrays"

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = [each.experiment_id for each in client.search_experiments()]
    runs = {Path(run.data.tags["run_folder"]).name: run for run in client.search_runs(ids)}
    names = [Path(point["run_dir"]).name for point in points(tmp_path)]
    parents = [runs[name].data.tags["mlflow.parentRunId"] for name in names[:3]]
    assert parents == [runs[sweep_folder(tmp_path).name].info.run_id, *[runs[names[0]].info.run_id] * 2]
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    words = ["semaim.run", "task=knn", f"checkpoint={points(tmp_path)[0]['run_dir']}", "tracking=none", "run_name=knn"]
    run_semaim(cluster, by_hand, *words)
    assert status(by_hand / "runs" / "knn")["result"] == status(Path(points(tmp_path)[1]["run_dir"]))["result"]


def test_check_uses_the_real_sinfo(cluster: Cluster, tmp_path: Path) -> None:
    wrong = ("hydra.launcher.nodes=3", "hydra.launcher.partition=main", *ON_CPU, *SMALL_ANYHOW, "tracking=none")
    said = run_semaim(cluster, tmp_path, "semaim.run", *wrong, expect=2)
    assert "hydra.launcher.nodes=3: partition main has 2" in said
    assert not list((tmp_path / "runs").glob("*/sweep.json")), "nothing was submitted"
    assert not cluster.squeue()
