"""Names of runs in MLflow begin with what differs, and fit into its column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semaim.config.run_spec import RunSpec
from semaim.runs.folder import RunFolder
from semaim.tracking.run_names import MAX_NAME, name_of, run_name, setting, stored_name, sweep_name
from support.in_process import job

CHOICES = {"task": "pretrain", "data": "digits", "permutation": "attention_center", "model": "aim_tiny"}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "pretrain digits attention_center"),
        (("permutation=raster", "seed=3"), "pretrain digits raster · seed 3"),
        (("model=aim_small", "trainer.epochs=5"), "pretrain digits attention_center · aim_small · epochs 5"),
        (("trainer.max_steps=5", "task.evaluators.knn.ks=[5]", "device=cpu"), "pretrain digits attention_center"),
        (("run_name=mine", "seed=1"), "mine"),
        (("task=knn", "checkpoint=random", "task.ks=[5]"), "knn · random · digits · ks [5]"),
        (("task=knn", "checkpoint=timm:vit_tiny", "data=shapes"), "knn · timm:vit_tiny · shapes"),
    ],
)
def test_a_run_of_its_own_is_named_by_what_it_does_and_changes(overrides: tuple[str, ...], name: str) -> None:
    assert name_of(job(*overrides)) == name


def test_a_folder_of_images_is_named(tmp_path: Path) -> None:
    spec = job("data=folder", f"data.root={tmp_path}/photos")
    assert name_of(spec) == "pretrain photos attention_center"


@pytest.mark.parametrize(
    ("options", "swept", "name"),
    [
        ({"permutation": "attention_center", "seed": "1"}, ["permutation", "seed"], "attention_center · seed 1"),
        ({"trainer.epochs": "5", "seed": "1"}, ["trainer.epochs"], "epochs 5"),
        ({"data.root": "/data/b/photos"}, ["data.root"], "root photos"),
    ],
)
def test_a_run_of_a_sweep_is_named_by_what_is_swept(options: dict[str, str], swept: list[str], name: str) -> None:
    assert run_name(CHOICES, "digits", options, swept) == name


def test_a_sweep_is_named_by_its_axes() -> None:
    same = {"trainer.epochs": "4", "model": "aim_small"}
    assert sweep_name(["permutation", "seed"], 6, same, CHOICES) == "permutation × seed (6 runs) · epochs 4 · aim_small"  # noqa: RUF001


def test_values_are_short() -> None:
    assert setting("model.embed_dim", "96", CHOICES) == "embed_dim 96"
    assert setting("checkpoint", "runs/a/b", CHOICES) == "checkpoint b"
    assert setting("trainer.flops", "25000000000000.0", CHOICES) == "flops 2.5e13"
    assert len(setting("x", "y" * 900, CHOICES)) < 50


def test_a_long_name_ends_with_a_whole_option() -> None:
    name = sweep_name(["seed"], 2, {f"model.option_{i}": "value" for i in range(30)}, CHOICES)
    assert len(name) <= MAX_NAME + 2
    assert name.startswith("seed (2 runs) · option_0 value · option_1 value")
    assert name.endswith(" value …")


def started(spec: RunSpec, folder: Path, **start: object) -> None:
    """A run folder as it is after the start of a run."""
    folder.mkdir(parents=True)
    RunFolder(folder).store_or_check_config(spec.config)
    starts = [{"choices": spec.parts, "title": name_of(spec)} | start]
    (folder / "environment.json").write_text(json.dumps({"starts": starts}))


def test_an_evaluation_is_named_by_its_encoder_without_what_they_share(tmp_path: Path) -> None:
    pretraining = job("permutation=raster", "seed=1", "data=shapes", f"run_dir={tmp_path}/a")
    started(pretraining, tmp_path / "a", title="raster · seed 1")
    checkpoint = f"checkpoint={tmp_path}/a"
    assert name_of(job("task=knn", checkpoint, "seed=1", "data=shapes")) == "knn · raster · seed 1"
    assert name_of(job("task=knn", checkpoint, "seed=2", "data=shapes")) == "knn · raster · seed 1 · seed 2"
    assert name_of(job("task=knn", checkpoint, "data=digits", "seed=1")) == "knn · raster · seed 1 · digits"
    started(job(f"run_dir={tmp_path}/b"), tmp_path / "b")
    assert name_of(job("task=linprobe", f"checkpoint={tmp_path}/b")) == "linprobe · digits attention_center"


def test_a_run_of_an_earlier_version_has_the_name_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text('{"starts": [{"command": "x"}]}')
    assert stored_name(RunFolder(tmp_path)) == tmp_path.name
