"""Mistakes in options and data that `semaim check` finds at each point before submission."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semaim.models.aim import AIM
from semaim.models.flops import cost
from semaim.preflight.check import check_sweep
from support.checking import command, one
from support.mistakes import MISTAKES, place_of_mistakes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working directory with all files named by the mistakes."""
    with place_of_mistakes(tmp_path) as place:
        yield place


@pytest.mark.slow
def test_every_mistake_reported_by_a_run_is_found(place: Path) -> None:
    for name, (typed, words) in MISTAKES.items():
        if name == "no GPU" and torch.cuda.is_available():
            continue
        (problem,) = one(*typed.split()).problems
        assert [word for word in words if word not in problem] == [], problem
        assert "\n" not in problem
    assert not (place / "pwned").exists()


def test_a_mistake_at_one_point_does_not_affect_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "model.num_heads=3,5,7", "trainer.batch_size=32,33", "trainer.accumulate=2", "then=[knn]") == 2
    out = capsys.readouterr().out.splitlines()
    assert out[-4:] == [
        "problem: trainer.batch_size=33 must be divisible by processes x trainer.accumulate = 1 x 2 "
        "[model.num_heads=3 trainer.batch_size=33]",
        "problem: model.num_heads=5 must divide model.embed_dim=96 "
        "[model.num_heads=5 trainer.batch_size=32; model.num_heads=5 trainer.batch_size=33]",
        "problem: model.num_heads=7 must divide model.embed_dim=96 "
        "[model.num_heads=7 trainer.batch_size=32; model.num_heads=7 trainer.batch_size=33]",
        "3 problems: 6 runs and 6 evaluations after, 1 process each, about 0.0 GPU-hours",
    ]
    cells = [re.split(r"  +", line)[1:] for line in out[1:13]]
    fine = ["452 k", "732 k", "370 M", "880", "1437", "360", "10", "55.1 MB", "0.0", "new"]
    nothing = [*["-"] * 4, "1437", "360", "10", "-", "-", "new"]
    assert [cells[point] for point in (0, 2, 4, 6)] == [fine, nothing, nothing, nothing]
    assert cells[3] == cells[1] == ["452 k", "452 k", "64.6 M", "-", "1437", "360", "10", "-", "0.0", "new"]
    assert cells[5] == nothing  # a model that cannot be built has no values


def test_problems_common_to_all_points_are_reported_once() -> None:
    points = [[f"permutation={order}", "data=folder", "data.root=nope", "then=[knn]"] for order in ("raster", "zigzag")]
    assert check_sweep(points).problems == [
        "data.root=nope is not a folder: set data.root to the folder that holds the images"
    ]


def test_mistakes_of_several_kinds_are_all_found() -> None:
    (values,) = one("seed=-1", "device=gpu", "model.num_heads=5").problems
    assert [word for word in ("seed=-1: ", "device=gpu: ") if word not in values] == []
    checked = one("model.num_heads=5", "tracking.uri=http://127.0.0.1:9", "runs_dir=nope")
    for word in ("model.num_heads=5", "tracking.uri=http://127.0.0.1:9"):
        assert [problem for problem in checked.problems if word in problem] != []
    assert len(checked.problems) == 2


def test_points_of_the_same_run() -> None:
    checked = check_sweep([["run_name=x", "seed=0"], ["run_name=x", "seed=1"], ["seed=2"]])
    (problem,) = checked.problems
    assert problem == (
        "several points of this sweep are the same run, runs/x: leave run_name at its default, and sweep "
        "over what differs [run_name=x seed=1]"
    )
    assert [row.cost is None for row in checked.rows] == [False, False, False]


def test_a_sweep_needs_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("seed=0,1") == 2
    assert "seed=0,1: several values are a sweep, which -m starts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=["], "error: seed=[: Hydra cannot read this value"),
        (["--config-dir", "nope"], "error: --config-dir nope is not a folder"),
        (["--tflops", "0"], "error: --tflops 0 must be positive"),
    ],
)
def test_unreadable_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_user_configuration_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("defaults: [aim_tiny, _self_]\nembed_dim: 48\n")
    assert command("--config-dir", "own", "-m", "model=mine,aim_tiny") == 0
    out = capsys.readouterr().out.splitlines()
    small = AIM(48, 32, 4, embed_dim=48, depth=4, num_heads=3, query_depth=2)
    assert f"  {cost(small, True).parameters / 1000:.0f} k" in out[1]
    assert out[2].startswith("pretrain_digits_aim_tiny_")


def test_problems_of_launcher_options_are_reported_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "seed=0,1", "hydra/launcher=submitit_local", "hydra.launcher.tasks=3", "model=nope") == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert {problem.split(":")[1].split(".")[0] for problem in problems} == {
        " there is no option hydra",
        " there is no nope in model (model=nope)",
    }
    assert len(problems) == 2


# Data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes; the first image of each part is unreadable."""
    for part, count in (("train", 6), ("val", 3)):
        for kind in ("cat", "dog"):
            where = tmp_path / "data" / part / kind
            where.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((40, 40, 3), 9 * number, np.uint8)).save(where / f"{number}.png")
        (tmp_path / "data" / part / "cat" / "0.png").write_bytes(b"no image")
    return tmp_path / "data"


FOLDER = ("data=folder", "data.root=data", "data.image_size=32", "data.patch_size=4", "trainer.batch_size=4")


def test_data_are_counted_and_read(folder: Path) -> None:
    (problem,) = one(*FOLDER, "data.max_unreadable=0").problems
    assert problem.startswith("'data/train/cat/0.png' cannot be read (UnidentifiedImageError: cannot identify")
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "train" / "cat" / "0.png")
    (problem,) = one(*FOLDER, "data.max_unreadable=0").problems
    assert problem.startswith("'data/val/cat/0.png' cannot be read")
    checked = one(*FOLDER)  # data.max_unreadable=10
    assert checked.problems == []
    (row,) = checked.rows
    assert row.cells(120.0)[5:8] == ["12", "6", "2"]


def test_followers_are_checked_before_training(folder: Path) -> None:
    assert one(*FOLDER, "then=[knn,linprobe,finetune]", "seed=1").problems == [
        "ks=[10, 20, 30], but there are 12 labelled training images: lower task.ks [then knn]",
        "trainer.batch_size=4096 is more than the 12 training images: add trainer.batch_size=12 [then linprobe]",
        "trainer.batch_size=1024 is more than the 12 training images: add trainer.batch_size=12 [then finetune]",
    ]
    shutil.rmtree(folder / "val")
    problems = one(*FOLDER, "then=[knn]", "evaluators=[pictures]").problems
    assert problems[0].startswith("these data have no held-out images")
    assert problems[0].endswith("[then knn]")


def broken(**_: Any) -> Callable[[Image.Image], Tensor]:
    """A transform that fails only when it is called."""

    def transform(image: Image.Image) -> Tensor:
        raise ValueError(f"no {image.size}")

    return transform


def test_augmentation_is_tried() -> None:
    with mock.patch("semaim.data.transforms.finetuning", broken):
        (problem,) = one("task=finetune", "checkpoint=random").problems
    assert problem.startswith("the augmentation (data.train_transform, or task.train_transform")
    assert problem.endswith("fails on 'digits/train[0]': ValueError: no (32, 32)")
