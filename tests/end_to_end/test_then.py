"""Pretraining and evaluations in one command: each follower equals its own command and is a child of the first run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from semaim.config.follow_ups import follow_ups
from semaim.config.run_spec import RunSpec
from semaim.errors import UserError
from support.commands import SMALL, measured, run, status, succeed
from support.in_process import job, run_here

SHORT = (*SMALL, "trainer.max_steps=2", "tracking=mlflow", "run_name=pre", "seed=3")


def followers(*overrides: str) -> list[RunSpec]:
    return follow_ups(job(*overrides))


def test_no_followers_by_default() -> None:
    assert followers("run_name=pre") == []


def test_a_follower_equals_its_plain_command() -> None:
    knn, probe = followers("run_name=pre", "then=[knn,linprobe]")
    assert knn.overrides == ["task=knn", "checkpoint=runs/pre"]
    assert probe.overrides == ["task=linprobe", "checkpoint=runs/pre"]
    assert (knn.cfg.parent_run, knn.cfg.checkpoint) == (str(Path.cwd() / "runs" / "pre"), "runs/pre")
    by_hand = job(*knn.overrides, "run_name=any")
    assert knn.cfg.run_name == "knn_of_pre"
    assert knn.cfg.run_dir == f"runs/{knn.cfg.run_name}"
    assert knn.choices == by_hand.choices
    assert probe.choices["trainer"] == "linprobe"
    assert probe.cfg.trainer.epochs == 20  # of the short form for digits
    different = {key for key in knn.cfg if knn.cfg[key] != by_hand.cfg[key]}
    assert different == {"parent_run", "run_name", "run_dir"}


def test_data_tracking_seed_and_device_are_carried_over() -> None:
    (knn,) = followers(
        "run_name=pre", "then=[knn]", "data=folder", "data.root='/a b/c'", "data.image_size=[32,64]",
        "data.patch_size=8", "data.train_transform.mean=[0.1,0.2,0.3]", "seed=7", "device=cpu", "permutation=raster",
        "tracking.experiment=x", "trainer.epochs=3",
    )  # fmt: skip
    assert knn.overrides == [
        "task=knn",
        "checkpoint=runs/pre",
        "device=cpu",
        "tracking.experiment=x",
    ]
    assert knn.inherited is not None
    assert knn.inherited.overrides == [
        "data=folder",
        'data.root="/a b/c"',
        "data.image_size=[32, 64]",
        "data.patch_size=8",
        "data.train_transform.mean=[0.1, 0.2, 0.3]",
        "seed=7",
    ]
    assert (knn.cfg.data.root, list(knn.cfg.data.image_size)) == ("/a b/c", [32, 64])
    assert list(knn.cfg.data.eval_transform.mean) == [0.1, 0.2, 0.3]
    assert (knn.cfg.seed, knn.cfg.device, knn.cfg.tracking.experiment) == (7, "cpu", "x")


def test_data_of_an_experiment_are_carried_over() -> None:
    (probe,) = followers("run_name=pre", "then=[linprobe]", "+experiment=semaim_vitb_800ep", "data.root=/data/imagenet")
    assert probe.overrides == ["task=linprobe", "checkpoint=runs/pre"]
    assert (probe.choices["data"], probe.cfg.data.root) == ("imagenet", "/data/imagenet")
    assert (probe.cfg.trainer.epochs, probe.cfg.trainer.batch_size) == (90, 4096)


def test_a_class_of_the_data_is_in_the_command() -> None:
    """An evaluation takes no class from a run folder, so that its command names it."""
    own = "data.source._target_=support.paced.squares"
    (knn,) = followers("run_name=pre", "then=[knn]", own, "data.val_fraction=0.3")
    assert knn.overrides == ["task=knn", "checkpoint=runs/pre", own]
    assert knn.cfg.data.source._target_ == "support.paced.squares"
    assert knn.inherited is not None
    assert knn.inherited.overrides == ["data=digits", "data.val_fraction=0.3"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("then=[knn,nothing]",),
            r"then=\['knn', 'nothing'\]: there is no evaluation nothing; choose from .*knn, linprobe",
        ),
        (("then=[pretrain]",), "there is no evaluation pretrain"),
        (("task=knn", "checkpoint=random", "then=[knn]"), "is for task=pretrain"),
    ],
)
def test_mistakes(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        followers("run_name=pre", *overrides)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of one command that made a pretraining and two evaluations."""
    folder = tmp_path_factory.mktemp("then")
    said = succeed(folder, *SHORT, "then=[knn,linprobe]")
    assert said.count("finished in") == 3
    return folder


def child(place: Path, task: str) -> Path:
    return place / "runs" / f"{task}_of_pre"


def mlflow_runs(place: Path) -> dict[str, Any]:
    """Every MLflow run, by task."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("semaim").experiment_id])
    assert len(found) == 3
    return {each.data.tags["task"]: (client, each) for each in found}


def test_all_three_runs_are_finished(place: Path) -> None:
    for folder in (place / "runs" / "pre", child(place, "knn"), child(place, "linprobe")):
        assert status(folder)["state"] == "finished"
    result = status(child(place, "knn"))["result"]
    assert set(result) == {
        f"knn_{k}_{kind}{metric}" for k in (10, 20, 30) for kind in ("cls", "mean") for metric in ("", "_top5")
    }
    assert set(status(child(place, "linprobe"))["result"]) == {
        f"linprobe_{kind}{metric}" for kind in ("cls", "mean") for metric in ("", "_top5", "_loss")
    }


def test_mlflow_shows_the_evaluations_under_the_pretraining(place: Path) -> None:
    runs = mlflow_runs(place)
    client, parent = runs["pretrain"]
    assert "mlflow.parentRunId" not in parent.data.tags
    choices = {"task": "pretrain", "model": "aim_tiny", "permutation": "attention_center", "semantic_map": "cls"}
    choices |= {"target": "pixels", "optimizer": "adamw_small", "data": "digits", "trainer": "small"}
    assert choices.items() <= parent.data.tags.items()
    assert parent.info.status == "FINISHED"
    for task in ("knn", "linprobe"):
        _, run = runs[task]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        about = {key: value for key, value in run.data.tags.items() if key.startswith("pretrained.")}
        assert about == {
            "pretrained.run": "pre",
            "pretrained.model": "aim_tiny",
            "pretrained.permutation": "attention_center",
            "pretrained.method": "SemAIM",
            "pretrained.target": "pixels",
            "pretrained.data": "digits",
            "pretrained.seed": "3",
            "pretrained.device": "cpu",
            "pretrained.options": "model.embed_dim=32 model.num_heads=2 trainer.batch_size=16",
        }
        assert run.data.tags["data"] == "digits"
        assert {"model", "permutation", "target"}.isdisjoint(run.data.tags), "which are not the encoder's"
        assert run.data.tags.get("optimizer") == {"knn": None, "linprobe": "sgd_linprobe"}[task]
        said = run.data.tags["mlflow.note.content"]
        assert said.startswith(f"**{task}** with ")
        assert f"```bash\nsemaim run task={task} checkpoint=runs/pre" in said
        assert f"* run folder: `{child(place, task)}`" in said
        assert "* shown under: `pre`" in said
        for name, value in status(child(place, task))["result"].items():
            assert f"| {name} | {value:.4g} |" in said
        assert run.data.metrics["pretrained/images_seen"] == 32
        assert run.data.metrics["pretrained/epochs"] == pytest.approx(2 / 89)  # steps of 16 images
        assert 0 < run.data.metrics["pretrained/device_hours"] < 0.1
        for name, value in status(child(place, task))["result"].items():
            assert run.data.metrics[f"eval/{name}"] == parent.data.metrics[f"eval/{name}"] == value
            (point,) = client.get_metric_history(run.info.run_id, f"eval/{name}")
            assert point.step == 2  # steps of pretraining
        artifacts = {each.path for each in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "environment.json", "per_class.csv", "confusion.csv"} <= artifacts


def test_device_hours_are_those_of_the_steps(place: Path) -> None:
    hours = [
        line["metrics"]["train/device_hours"] for line in measured(place / "runs" / "pre") if "train/loss" in str(line)
    ]
    (in_child,) = (line["metrics"] for line in measured(child(place, "knn")) if "pretrained/epochs" in str(line))
    assert len(hours) == 2
    assert hours[1] > hours[0] > 0
    assert in_child["pretrained/device_hours"] == hours[1]


def test_the_same_command_evaluates_only_what_is_missing(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    before = status(child(tmp_path, "linprobe"))
    shutil.rmtree(child(tmp_path, "knn"))
    said = succeed(tmp_path, *SHORT, "then=[knn,linprobe]")
    assert said.count("this run is finished already") == 2
    assert status(child(tmp_path, "knn"))["result"] == status(child(place, "knn"))["result"]
    assert status(child(tmp_path, "linprobe")) == before


def test_a_manual_evaluation_is_the_same_run(place: Path) -> None:
    for words in (["checkpoint=runs/pre"], ["checkpoint=runs/pre/", "data=digits", "seed=3"]):
        assert "this run is finished already" in succeed(place, "task=knn", *words)


def test_a_mistake_is_found_before_training(tmp_path: Path) -> None:
    done = run(tmp_path, *SHORT, "then=[knm]")
    assert done.returncode == 2
    assert done.stdout.startswith("error: then=['knm']: there is no evaluation knm")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_reports_a_failed_evaluation_and_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("data=shapes", "data.source.train=16", "data.source.val=10", "trainer.max_steps=1", "then=[knn]")
    sweep = ("-m", *SMALL, *few, "permutation=raster,zigzag", "sweep.check=false")
    assert run_here(tmp_path, *sweep) == 1
    err = capsys.readouterr().err
    too_few = r"ks=\[10, 20, 30\], but there are 16 labelled training images"
    for order in ("raster", "zigzag"):
        assert re.search(rf"\npermutation={order} +- +failed +{too_few}", err)
    assert "error: 2 of 2 runs did not finish" in err
    assert run_here(tmp_path, *sweep) == 1
    again = capsys.readouterr().err
    assert again.count("this run is finished already") == 2, "the pretrainings, whose evaluations are tried again"
