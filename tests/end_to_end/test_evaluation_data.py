"""A folder of photos: its pretraining is evaluated by `task=... checkpoint=...` alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import SMALL, status, succeed
from support.in_process import run_here

DATA = ("data=folder", "data.root=photos", "data.image_size=16", "data.patch_size=4", "data.num_workers=0")
HELD_OUT = (*DATA, "data.val_fraction=0.25", "data.val_seed=3")
SHORT = (*SMALL, "trainer.max_steps=2", "seed=1")
KNN = ("task=knn", "tracking=none", "device=cpu", "task.ks=[1,3]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with photos, and a pretraining on them."""
    place = tmp_path_factory.mktemp("photos of ones own")
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (place / "photos" / label).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(place / "photos" / label / f"{label} {number}.png")
    assert run_here(place, *HELD_OUT, *SHORT, "run_name=pre") == 0
    return place


def test_the_short_command_gives_the_result_of_the_full_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = succeed(place, *KNN, "checkpoint=runs/pre/")  # a process of its own, as typed by users
    options = " ".join((*DATA[:2], "data.image_size=16 data.patch_size=4 data.num_workers=0"))
    assert f"data and seed from runs/pre: {options} data.val_fraction=0.25 data.val_seed=3 seed=1" in said
    (folder,) = (place / "runs").glob("knn_of_pre_with_task.ks-*")
    short = status(folder)["result"]
    assert run_here(place, *KNN, "checkpoint=runs/pre", *HELD_OUT, "seed=1") == 0
    assert "this run is finished already" in capsys.readouterr().err, "the full command is the same run"
    assert run_here(place, *KNN, "checkpoint=runs/pre", "tracking=tensorboard") == 0
    assert "this run is finished already" in capsys.readouterr().err, "tracking is no part of the result"
    assert run_here(place, *KNN, "checkpoint=runs/pre", *HELD_OUT, "seed=1", "run_name=full") == 0
    assert status(place / "runs" / "full")["result"] == short
    assert run_here(place, *KNN, "checkpoint=runs/pre", "data.val_fraction=0.5", "run_name=half") == 0
    rows = [(place / "runs" / name / "per_class.csv").read_text().splitlines() for name in ("full", "half")]
    assert [[row.split(",")[1] for row in each[1:]] for each in rows] == [["5", "5"], ["10", "10"]]


def test_pictures_are_of_the_photos(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ("task=visualize", "checkpoint=runs/pre", "tracking=none", "device=cpu", "task.count=3")
    assert run_here(place, *drawn, "task.formats=[png]", "run_name=drawn") == 0
    assert "3 of 10 held-out images; pictures/images.csv names their files" in capsys.readouterr().err
    header, *rows = (place / "runs" / "drawn" / "pictures" / "images.csv").read_text().splitlines()
    assert header == "page,row,image"
    assert [row.split(",")[:2] for row in rows] == [["1", "1"], ["1", "2"], ["1", "3"]]
    assert all((place / row.split(",")[2]).is_file() for row in rows)


def test_without_held_out_images_a_complete_command_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    assert run_here(tmp_path, *DATA, *SHORT, "run_name=all") == 0
    said = capsys.readouterr().err
    assert said.count("data.val_fraction=0.1 would hold out a tenth of each class, for k-NN accuracy during") == 1
    assert "evaluate:     semaim run task=knn checkpoint=runs/all data.val_fraction=0.1\n" in said
    assert run_here(tmp_path, *KNN, "checkpoint=runs/all") == 2
    *_, problem, command = capsys.readouterr().err.strip().splitlines()
    assert problem.startswith("error: these data have no held-out images")
    words = "task=knn tracking=none device=cpu 'task.ks=[1,3]' checkpoint=runs/all data.val_fraction=0.1"
    assert command == f"  semaim run {words}"
    assert run_here(tmp_path, *KNN, "checkpoint=runs/all", "data.val_fraction=0.1") == 0


def test_weights_of_another_size_name_a_command_that_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(next((place / "runs" / "pre" / "checkpoints").glob("*.pt")), place / "copied.pt")
    assert run_here(place, *KNN, "checkpoint=copied.pt") == 2
    *_, command = capsys.readouterr().err.strip().splitlines()
    words = "task=knn tracking=none device=cpu 'task.ks=[1,3]' checkpoint=copied.pt"
    assert command == f"  semaim run {words} data.image_size=16 data.patch_size=4"
    assert run_here(place, *KNN, "checkpoint=copied.pt", "data.image_size=16", "data.patch_size=4") == 0
