"""Options that have no effect on the run of their command."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import PROGRAM, succeed

from semaim.config.compose import composition
from semaim.config.effects import without_effect

RANDOM = ["checkpoint=random"]
STORED = ["checkpoint=runs/x"]


@pytest.mark.parametrize(
    ("command", "useless"),
    [
        (["trainer.epochs=3", "seed=1", "model=aim_base", "target.blur_sigma=2", "evaluators=[knn]"], {}),
        (["seed=1", "model=aim_base", "seed=2"], {"seed=1": "seed=2 comes later"}),
        (["images=/x"], {"images=/x": "Pretraining does not use it"}),
        (["recipe=short"], {"recipe=short": "Pretraining does not use it"}),
        (["sweep.restarts=5"], {"sweep.restarts=5": "this is no sweep (-m)"}),
        (["data.val_seed=3"], {"data.val_seed=3": "data.val_fraction=null"}),
        (["data.val_seed=3", "data.val_fraction=0.1"], {}),
        (["target.blur_kernel_size=0", "target.blur_sigma=2"], {"target.blur_sigma=2": "target.blur_kernel_size=0"}),
        (["trainer.ema_decay=[0.9,0.99]"],
         {"trainer.ema_decay=[0.9,0.99]": "no moving average is kept (trainer.ema=true)"}),
        (["trainer.ema_ramp_epochs=3", "target=ema"], {}),
        (["trainer.ema_ramp_epochs=3", "semantic_map.source=ema"], {}),
        (["permutation=raster", "semantic_map=gap", "evaluators=[]"],
         {"semantic_map=gap": "this order needs no semantic map"}),
        (["permutation=raster", "semantic_map=gap"], {}),  # the pictures show it
        (["semantic_map=gap", "evaluators=[]"], {}),
        (["task=knn", *STORED, "trainer.epochs=3", "optimizer=adamw", "permutation=raster", "task.ks=[3]"],
         {"trainer.epochs=3": "KNN does not use it", "optimizer=adamw": "KNN does not use it",
          "permutation=raster": "KNN does not use it"}),
        (["task=knn", *STORED, "model=aim_base", "target=ema", "data.train_transform.mean=[0,0,0]"],
         {"model=aim_base": "the checkpoint determines the model", "target=ema": "an evaluation has no target"}),
        (["task=knn", *RANDOM, "model=aim_base", "target=ema"], {}),
        (["method=mae", "size=small"], {}),
        (["size=small"], {"size=small": "it is for method=..., model=... has sizes of its own"}),
        (["task=knn", *STORED, "method=mae"], {"method=mae": "the checkpoint determines the model"}),
        (["task=knn", *STORED, "trainer.flops=1e9"], {"trainer.flops=1e9": "KNN does not use it"}),
        (["task=knn", *STORED, "data.train_transform.flip=0.5"],
         {"data.train_transform.flip=0.5": "nothing is trained"}),
        (["task=linprobe", *STORED, "data.train_transform.flip=0.5", "optimizer.base_lr=1"], {}),
        (["task=linprobe", *STORED, "data.train_transform.scale=[0.5,1]", "task.base_lrs=[1,2]", "optimizer.base_lr=1"],
         {"data.train_transform.scale=[0.5,1]": "only pretraining uses it",
          "optimizer.base_lr=1": "task.base_lrs replaces it"}),
        (["task=linprobe", *STORED, "task.holdout=0.2"], {"task.holdout=0.2": "task.base_lrs has no choices"}),
        (["task=finetune", *STORED, "task.eval_only=true", "trainer.epochs=3", "task.mixup=0.1", "task.batch_size=8"],
         {"trainer.epochs=3": "task.eval_only=true", "task.mixup=0.1": "task.eval_only=true"}),
        (["task=visualize", *STORED, "images=/x", "task.count=3", "trainer.epochs=2"],
         {"trainer.epochs=2": "Visualize does not use it"}),
        (["task=features", *STORED, "task.format=npz", "recipe=short"],
         {"recipe=short": "ExportFeatures does not use it"}),
    ],
)  # fmt: skip
def test_options_without_effect(command: list[str], useless: dict[str, str]) -> None:
    expected = [f"{option} has no effect: {reason}" for option, reason in useless.items()]
    assert without_effect(composition(command), command) == expected


def test_an_option_of_sweeps_has_an_effect_in_a_sweep() -> None:
    assert without_effect(composition(["sweep.restarts=5"]), ["sweep.restarts=5"], is_sweep=True) == []


def test_a_run_says_so_once_and_goes_on(tmp_path: Path) -> None:
    words = ["tracking=none", "evaluators=[]", "data=shapes", "data.source.train=32", "data.source.val=10"]
    command = [*words, "trainer.max_steps=1", "images=/x", "sweep.restarts=2"]
    expected = [
        "images=/x has no effect: Pretraining does not use it",
        "sweep.restarts=2 has no effect: this is no sweep (-m)",
    ]
    said = succeed(tmp_path, *command)
    assert [said.count(each) for each in expected] == [1, 1]
    said = succeed(tmp_path, "check", *command, launcher=PROGRAM)
    assert [said.count(each) for each in expected] == [1, 1]
    said = succeed(tmp_path, "-m", *command, "seed=0,1", "sweep.check=false")
    assert [said.count(each) for each in expected] == [1, 0]
