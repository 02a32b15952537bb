"""Runs of version 0.1.0 continue and can be evaluated: their stored configurations use old class paths.

tests/golden/runs_0.1.0.tar.gz contains a pretraining and a fine-tuning, each stopped after two of four steps, made with
version 0.1.0. The numbers below are the results of version 0.1.0 for the next steps; they were bit-identical on the
machine that made them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.config.old_versions import NEW_NAMES, upgraded
from support.commands import journal, losses, run, status, succeed
from support.stored_runs import unpack

COMMON = ("data=digits", "trainer.epochs=1", "trainer.batch_size=16", "trainer.log_every_steps=1")
COMMON += ("trainer.keep_checkpoints=1", "tracking=none", "device=cpu", "trainer.max_steps=4")
PRETRAINING = (*COMMON, "model=aim_tiny", "model.embed_dim=16", "model.depth=2", "model.num_heads=2")
PRETRAINING += (
    "model.query_depth=1",
    "trainer.ema=true",
    "task.evaluators.knn.max_bank=200",
    "task.evaluators.pictures.images=4",
)
PRETRAINING += ("task.evaluators.pictures.drawn=1", "evaluators=[knn,linear,pictures]", "run_name=pretraining")
FINE_TUNING = (
    *COMMON,
    "task=finetune",
    "checkpoint=runs/pretraining",
    "trainer.warmup_epochs=0",
    "run_name=finetuning",
)
KNN = ("task=knn", "data=digits", "checkpoint=runs/pretraining", "tracking=none", "device=cpu", "run_name=neighbours")
# Losses of steps 3 and 4.
PRETRAINING_LOSSES = [1.1365296840667725, 1.1409775018692017]
FINE_TUNING_LOSSES = [2.301675319671631, 2.304399251937866]
NEIGHBOURS = {"knn_10_cls": 65.8333, "knn_20_cls": 64.1667, "knn_10_mean": 72.5, "knn_20_mean": 67.7778}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory with the stored runs."""
    return unpack(tmp_path)


def test_the_stored_configurations_have_old_names(home: Path) -> None:
    """Precondition of the tests below."""
    text = "".join((home / "runs" / name / "config.yaml").read_text() for name in ("pretraining", "finetuning"))
    found = {old for old in NEW_NAMES if f"_target_: {old}\n" in text}
    assert found == NEW_NAMES.keys() - {"semaim.tasks.export_features.ExportFeatures", "semaim.tracking.MLflow"}


def test_a_pretraining_continues(home: Path) -> None:
    said = succeed(home, *PRETRAINING)
    assert "continuing after step 2" in said
    found = losses(home / "runs" / "pretraining")
    assert list(found) == [1, 2, 3, 4]
    # Since 0.2.0 torch resizes the pixels, of which few are a level away from those of Pillow.
    assert [found[3], found[4]] == pytest.approx(PRETRAINING_LOSSES, rel=1e-5)
    result = status(home / "runs" / "pretraining")["result"]
    assert result["online/knn_10_mean_before"] == pytest.approx(46.94444444444444)  # measured with 0.1.0
    assert result["online/knn_10_mean_after"] == pytest.approx(47.22222222222222, abs=0.6)  # one image of 360 is 0.28


def test_its_encoder_is_evaluated_and_a_fine_tuning_of_it_continues(home: Path) -> None:
    succeed(home, *KNN)
    found = status(home / "runs" / "neighbours")["result"]
    assert {name: found[name] for name in NEIGHBOURS} == pytest.approx(NEIGHBOURS, abs=0.6)

    said = succeed(home, *FINE_TUNING)
    assert "continuing after step 2" in said
    found = losses(home / "runs" / "finetuning")
    assert [found[3], found[4]] == pytest.approx(FINE_TUNING_LOSSES, rel=1e-6)
    assert len([line for line in journal(home / "runs" / "finetuning") if line.get("status") == "RUNNING"]) == 2


def test_another_configuration_is_still_refused(home: Path) -> None:
    done = run(home, *PRETRAINING, "optimizer.weight_decay=0.1")
    assert done.returncode == 2
    assert "optimizer.weight_decay: 0.05 -> 0.1" in done.stdout
    assert "_target_" not in done.stdout  # a difference in names only is none


def test_folders_of_the_old_version_were_read_as_stored() -> None:
    found = upgraded({"recipe": "short", "data": {"source": {"_target_": "semaim.data.sources.image_folders"}}})
    assert found["data"]["source"]["exif"] is False
    assert upgraded({"recipe": "short", "data": None}) == {"recipe": "short", "data": None, "extend": None}


def test_schedule_and_length_are_those_that_were_built_in() -> None:
    old = {"recipe": "short", "optimizer": {"base_lr": 1.0}, "trainer": {"epochs": 3}, "data": None}
    found = upgraded(old)
    assert found["optimizer"] == {"base_lr": 1.0, "schedule": {"_target_": "semaim.training.schedules.Cosine"}}
    assert (found["trainer"]["epochs"], found["trainer"]["flops"]) == (3, None)
    assert upgraded(found) == found
    own = {"_target_": "semaim.training.schedules.MultiStep", "milestones": [0.5], "gamma": 0.1}
    assert upgraded({"recipe": "short", "optimizer": {"schedule": own}})["optimizer"]["schedule"] == own


def test_names_inside_lists_and_other_values_are_kept() -> None:
    stored = {
        "a": [{"_target_": "semaim.trainer.Trainer", "b": "semaim.trainer.Trainer"}],
        "c": None,
        "_target_": "x.Y",
        "recipe": "short",
    }
    assert upgraded(stored) == {
        "a": [{"_target_": "semaim.training.settings.TrainerSettings", "b": "semaim.trainer.Trainer"}],
        "c": None,
        "_target_": "x.Y",
        "recipe": "short",
        "extend": None,
    }


def test_a_stored_neighbours_evaluation_gets_the_option_it_lacks() -> None:
    task = {"_target_": "semaim.tasks.knn.KNN", "ks": [10]}
    assert upgraded({"recipe": "short", "task": dict(task)})["task"] == task | {"mean_before_norm": False}
    assert upgraded({"recipe": "short", "task": {**task, "mean_before_norm": True}})["task"]["mean_before_norm"] is True
