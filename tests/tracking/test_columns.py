"""MLflow's columns Dataset, Source, User and Models, read with its client from a SQLite file and from a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.data
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from semaim.data.sources import digits
from semaim.runs.folder import RunFolder
from semaim.runs.provenance import user
from semaim.sweeps.removal import plan_removals, remove
from semaim.tracking.delivery import Delivery
from semaim.tracking.store import name_store
from support.commands import sweep_folder
from support.in_process import run_here
from support.mlflow_server import Server
from support.tracked import TINY, assert_shows_all, delivery_state, mlflow_client, points_shown

SHORT = (*TINY, "trainer.max_steps=4", "model.embed_dim=32", "model.num_heads=2", "tracking.flush_seconds=60")
TRAIN, HELD_OUT = digits().train, digits().val


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a pretraining that was continued, and an evaluation of its encoder."""
    place = tmp_path_factory.mktemp("columns")
    for steps in (2, 4):
        assert run_here(place, *SHORT, "seed=1", f"trainer.max_steps={steps}", "run_name=long_name_of_a_folder") == 0
    assert run_here(place, "task=knn", "checkpoint=runs/long_name_of_a_folder", "tracking.flush_seconds=60") == 0
    return place


@pytest.fixture(scope="module", params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, place: Path) -> Iterator[tuple[Path, Any]]:
    """The run folders and a client of a store: the one they were sent to, or a server that they are sent to later."""
    if request.param == "sqlite":
        yield place, mlflow_client(f"sqlite:///{place}/mlflow.db")
        return
    copy = place / "copy"
    shutil.copytree(place / "runs", copy / "runs")
    for folder in (copy / "runs").iterdir():
        for file in folder.glob("*.json*"):
            file.write_text(file.read_text().replace(f"{place}/runs", f"{copy}/runs"))
    server = Server(copy)
    try:
        server.start()
        name_store("--uri", server.uri)
        Delivery(RunFolder(pretraining(copy)), server.uri, "semaim")  # as of a run whose server was down all the time
        for _ in range(2):  # the second time from the start, as after a crash before the position was saved
            for folder in (evaluation(copy), pretraining(copy)):
                Delivery(RunFolder(folder), server.uri, "semaim").deliver()
                (folder / "mlflow.json").write_text(json.dumps(delivery_state(folder) | {"sent": 0}))
        yield copy, mlflow_client(server.uri)
    finally:
        server.stop()


def pretraining(place: Path) -> Path:
    return place / "runs" / "long_name_of_a_folder"


def evaluation(place: Path) -> Path:
    (folder,) = (place / "runs").glob("knn_*")
    return folder


def shown(store: tuple[Path, Any], which: Any) -> Any:
    place, client = store
    return client.get_run(delivery_state(which(place))["run_id"])


def model(store: tuple[Path, Any]) -> Any:
    """The only model of the experiment."""
    (found,) = store[1].search_logged_models([shown(store, pretraining).info.experiment_id])
    return store[1].get_logged_model(found.model_id)


@pytest.mark.parametrize("which", [pretraining, evaluation])
def test_datasets_are_there_once_with_digest_and_counts(store: tuple[Path, Any], which: Any) -> None:
    used = shown(store, which).inputs.dataset_inputs
    rows = {
        (each.tags[0].value, each.dataset.name, each.dataset.digest, json.loads(each.dataset.profile)["num_rows"])
        for each in used
    }
    assert rows == {
        ("training", "digits", TRAIN.fingerprint()[:8], 1437),
        ("evaluation", "digits", HELD_OUT.fingerprint()[:8], 360),
    }
    assert len(used) == 2
    source = mlflow.data.get_source(used[0])
    assert source.to_dict() == {"tags": {"mlflow.source.name": "semaim.data.sources.digits"}}


def test_source_user_and_version_are_those_of_the_start(store: tuple[Path, Any]) -> None:
    run = shown(store, pretraining)
    (first, _) = json.loads((pretraining(store[0]) / "environment.json").read_text())["starts"]
    tags = run.data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("semaim run", "LOCAL")
    assert tags.get("mlflow.source.git.commit") == first["commit"]
    assert (tags["mlflow.user"], run.info.user_id) == (user(), user())
    assert tags["run_folder"] == str(pretraining(store[0]))


def test_the_model_has_sizes_and_no_weights(store: tuple[Path, Any]) -> None:
    made, run = model(store), shown(store, pretraining)
    assert (made.name, str(made.status), made.source_run_id) == (run.info.run_name, "READY", run.info.run_id)
    wanted = {"embed_dim": "32", "num_heads": "2", "permutation": "attention_center", "seed": "1", "data": "digits"}
    assert wanted.items() <= made.params.items()
    assert [each.model_id for each in run.outputs.model_outputs] == [made.model_id]
    assert f"semaim.load_model('{pretraining(store[0])}')" in made.tags["mlflow.note.content"]
    assert store[1].list_logged_model_artifacts(made.model_id) == []


def test_the_model_lists_the_metrics_of_its_pretraining_and_evaluations(store: tuple[Path, Any]) -> None:
    made, run = model(store), shown(store, evaluation)
    assert [each.model_id for each in run.inputs.model_inputs] == [made.model_id]
    metrics = {each.key: each for each in made.metrics}
    accuracy = metrics["eval/knn_10_mean"]
    assert accuracy.value == run.data.metrics["eval/knn_10_mean"]
    assert (accuracy.dataset_name, accuracy.dataset_digest) == ("digits", HELD_OUT.fingerprint()[:8])
    assert accuracy.run_id == run.info.run_id
    loss = metrics["train/loss"]
    assert (loss.value, loss.step) == (shown(store, pretraining).data.metrics["train/loss"], 4)


def test_metrics_are_stored_once(store: tuple[Path, Any]) -> None:
    for which in (pretraining, evaluation):
        assert_shows_all(store[1], which(store[0]), "FINISHED")


def test_a_name_given_in_mlflow_is_kept(place: Path) -> None:
    client, folder = mlflow_client(f"sqlite:///{place}/mlflow.db"), evaluation(place)
    run_id = delivery_state(folder)["run_id"]
    assert client.get_run(run_id).info.run_name == "knn · long_name_of_a_folder"
    client.update_run(run_id, name="mine")
    try:
        (folder / "mlflow.json").write_text(json.dumps(delivery_state(folder) | {"sent": 0}))
        Delivery(RunFolder(folder), f"sqlite:///{place}/mlflow.db").deliver()
        assert client.get_run(run_id).info.run_name == "mine"
    finally:
        client.update_run(run_id, name="knn · long_name_of_a_folder")


def test_a_server_without_models_and_datasets_gets_the_rest(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise MlflowException("not found", error_code=1001)  # ENDPOINT_NOT_FOUND

    for request in ("log_inputs", "search_logged_models", "create_logged_model"):
        monkeypatch.setattr(f"mlflow.MlflowClient.{request}", unknown)
    folder = tmp_path / "run"
    shutil.copytree(pretraining(place), folder, ignore=shutil.ignore_patterns("mlflow.json"))
    shutil.copy(place / "mlflow.db", tmp_path / "mlflow.db")
    Delivery(RunFolder(folder), f"sqlite:///{tmp_path}/mlflow.db", "old").deliver()
    client, run_id = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db"), delivery_state(folder)["run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(points_shown(client, run_id)["train/loss"]) == 2


def test_a_folder_of_images_is_the_source(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "photos" / split / name / f"{i}.png")
    options = ("data=folder", "data.root=photos", "data.image_size=32", "data.patch_size=4", "trainer.batch_size=4")
    assert run_here(tmp_path, *SHORT, *options, "data.num_workers=0") == 0
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("semaim").experiment_id])
    training, held_out = sorted(run.inputs.dataset_inputs, key=lambda each: each.tags[0].value, reverse=True)
    assert {training.dataset.name, held_out.dataset.name} == {"photos"}
    assert [json.loads(each.dataset.profile) for each in (training, held_out)] == [
        {"num_rows": 8, "num_classes": 2},
        {"num_rows": 4, "num_classes": 2},
    ]
    assert mlflow.data.get_source(training).uri == str(tmp_path / "photos" / "train")
    assert run.info.run_name.startswith("pretrain photos attention_center")


def test_a_sweep_has_a_view_that_groups_by_what_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(tmp_path, "-m", *SHORT, "permutation=raster,zigzag", "seed=0,1", "then=[knn]") == 0
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("semaim")
    sweep = delivery_state(sweep_folder(tmp_path))["run_id"]
    key = f"semaim-{sweep[:12]}"
    page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    assert f"{page}&viewStateShareKey={key}\n" in capsys.readouterr().err
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert view["name"].startswith("permutation × seed (4 runs) · embed_dim 32")  # noqa: RUF001
    state = json.loads(view["state"])
    assert state.items() <= view.items()  # for versions that read the tag itself
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{sweep}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert len(found) == 4
    client.set_terminated(found[0].info.run_id, "FAILED")  # its accuracy of step 0 must not come first
    assert len(client.search_runs([experiment.experiment_id], state["searchFilter"])) == 3
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "permutation"}]
    columns = ["tags.`permutation`", "params.`seed`", "tags.`method`", "metrics.`eval/knn_10_mean`"]
    assert state["selectedColumns"][:4] == columns
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["eval/knn_10_mean"]
    assert len(json.dumps(view)) < 5000  # of older servers

    runs = client.search_runs([experiment.experiment_id])
    for task, tag in (("pretrain", "method"), ("knn", "pretrained.method")):
        methods = {run.data.tags["run_folder"]: run.data.tags[tag] for run in runs if run.data.tags.get("task") == task}
        assert sorted(methods.values()) == ["AIM, zigzag", "AIM, zigzag", "ViT-iGPT", "ViT-iGPT"]
    names = {run.info.run_name for run in runs}
    assert names == {view["name"]} | {
        f"{task}{order} · seed {seed}" for task in ("", "knn · ") for order in ("raster", "zigzag") for seed in (0, 1)
    }

    first = sweep_folder(tmp_path)
    assert run_here(tmp_path, "-m", *SHORT, "permutation=raster,zigzag", "seed=0", "then=[knn]") == 0
    second = next(path for path in tmp_path.glob("runs/sweep_*") if path != first)
    other = f"semaim-{delivery_state(second)['run_id'][:12]}"
    tags = client.get_experiment(experiment.experiment_id).tags
    chosen = json.loads(json.loads(tags[f"mlflow.sharedViewState.{other}"])["state"])["searchFilter"]
    listed = {run.info.run_name for run in client.search_runs([experiment.experiment_id], chosen)}
    assert listed == {"raster · seed 0", "zigzag · seed 0"}  # which stay under the first sweep

    for removal in plan_removals([first], keep_mlflow=False):
        remove(removal)
    assert f"mlflow.sharedViewState.{key}" not in client.get_experiment(experiment.experiment_id).tags
