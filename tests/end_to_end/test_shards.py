"""A training on shards equals that on the folder bit for bit, also if it continues from one on the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.commands import PROGRAM, SMALL, journal, losses, status, succeed
from support.evaluating import assert_same_bits
from support.in_process import run_here
from support.photos import photos

SMALL_RUN = tuple(word for word in SMALL if word != "evaluators=[]")
STEPS = (
    *SMALL_RUN,
    "data.image_size=32",
    "data.patch_size=8",
    "data.num_workers=1",
    "trainer.epochs=2",
    "trainer.save_every_steps=5",
    "evaluators=[knn]",
)
KNN = ("task=knn", "tracking=none", "device=cpu", "task.ks=[1,3]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with photos, their shards, and a run on the photos."""
    place = tmp_path_factory.mktemp("place")
    photos(place / "photos" / "train")
    photos(place / "photos" / "val", of_each=6)
    command = ("shard", "data=folder", "data.root=photos", "out=shards", "shard_size=100kB")
    said = succeed(place, *command, launcher=PROGRAM)
    assert "training and 19 held-out images in" in said
    assert said.splitlines()[-1].endswith("run data=folder data.root=shards")
    assert run_here(place, "data=folder", "data.root=photos", *STEPS, "run_name=folder") == 0
    return place


def assert_equal(run_folder: Path, other: Path) -> None:
    """Losses, evaluations, weights, random state and fingerprints are equal."""
    assert losses(run_folder) == losses(other)
    assert len(losses(other)) == 10
    knn = [[line["metrics"] for line in journal(folder) if line.get("step") == 10 and "online/knn_10_cls" in
            line.get("metrics", ())] for folder in (run_folder, other)]  # fmt: skip
    assert len(knn[0]) == 1
    assert knn[0] == knn[1]
    one, two = (torch.load(folder / "checkpoints" / "step_00000010.pt", weights_only=True)
                for folder in (run_folder, other))  # fmt: skip
    for part in ("model", "optimizer", "rng", "loss"):
        assert_same_bits(one[part], two[part], part)
    assert one["data_position"] == two["data_position"]
    assert len(one["data_position"]["fingerprint"]) == 64


@pytest.mark.parametrize("data", ["shards", "folder"])
def test_a_run_on_shards_equals_one_on_the_folder(place: Path, data: str) -> None:
    assert run_here(place, f"data={data}", "data.root=shards", *STEPS, f"run_name=on_{data}") == 0
    assert_equal(place / "runs" / f"on_{data}", place / "runs" / "folder")
    unreadable = ["unreadable image 1, skipped" in (place / "runs" / name / "run.log").read_text()
                  for name in (f"on_{data}", "folder")]  # fmt: skip
    assert unreadable == [True, True]


@pytest.mark.parametrize(("first", "then"), [("photos", "shards"), ("shards", "photos")])
def test_a_run_begun_on_one_continues_on_the_other(place: Path, first: str, then: str) -> None:
    words, folder = (*STEPS, f"run_name=from_{first}"), place / "runs" / f"from_{first}"
    assert run_here(place, "data=folder", f"data.root={first}", *words, "trainer.max_steps=7") == 0
    (folder / "checkpoints" / "step_00000007.pt").unlink()  # as if it were killed after step 7
    assert run_here(place, "data=folder", f"data.root={then}", *words) == 0
    assert_equal(folder, place / "runs" / "folder")


def test_an_evaluation_inherits_shards_and_has_the_results_of_the_folder(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    for name in ("folder", "on_shards"):
        if not (place / "runs" / name).exists():
            assert run_here(place, "data=shards", "data.root=shards", *STEPS, "run_name=on_shards") == 0
        assert run_here(elsewhere, *KNN, f"checkpoint={place}/runs/{name}", f"run_name={name}") == 0
    results = [status(elsewhere / "runs" / name)["result"] for name in ("folder", "on_shards")]
    assert results[0] == results[1]
    config = (elsewhere / "runs" / "on_shards" / "config.yaml").read_text()
    assert f"root: {place}/shards" in config
    assert json.loads((place / "shards" / "shards.json").read_text())["data"] == "folder"
