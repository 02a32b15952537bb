"""`semaim ls`: the runs and sweeps of a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from semaim.errors import UserError
from semaim.sweeps.listing import as_json, list_entries, ordered, select, table
from semaim.sweeps.sweep import Point, Sweep


def make_run(
    folder: Path, name: str, status: dict, choices: dict, config: dict, age: float = 0, size: int = 100
) -> Path:
    """A run folder with only the files that a listing reads."""
    path = folder / name
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "step_00000001.pt").write_bytes(bytes(size))
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())
    (path / "config.yaml").write_text("named_after: [task, data]\n" + lines)
    (path / "environment.json").write_text(json.dumps({"starts": [{"choices": choices}]}))
    if status:
        (path / "status.json").write_text(json.dumps(status))
    for file in path.rglob("*"):
        os.utime(file, (time.time() - age, time.time() - age))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four runs and a sweep of two of them."""
    folder = tmp_path / "runs"
    pretrain = {"task": "pretrain", "data": "digits", "model": "aim_tiny", "permutation": "raster", "target": "pixels"}
    done = {"state": "finished", "metric": "loss", "result": {"loss": 0.25, "other": 1.0}}
    first = make_run(folder, "first", done, pretrain, {"seed": 0, "trainer": {"epochs": 20}}, age=7300, size=5000)
    second = make_run(folder, "second", {"state": "failed", "error": "x"}, pretrain | {"permutation": "zigzag"},
                      {"seed": 1, "trainer": {"epochs": 20}}, age=60)  # fmt: skip
    make_run(folder, "dead", {"state": "running"}, pretrain, {"seed": 2, "trainer": {"epochs": 5}}, age=30)
    knn = {"state": "finished", "metric": "knn_10_mean", "result": {"knn_10_mean": 92.5}}
    make_run(folder, "evaluation", knn, {"task": "knn", "data": "digits"}, {"seed": 0}, age=10)
    points = [Point([f"permutation={order}", "seed=0"], str(path), job="here")
              for order, path in (("raster", first), ("zigzag", second))]  # fmt: skip
    Sweep("basic", {}, points, restarts=0, command="", path=folder / "sweep_orders").save()
    (folder / ".features").mkdir()
    (folder / "notes.txt").write_text("no run")
    return folder


def test_what_is_listed(runs: Path) -> None:
    listed = {each.path.name: each for each in list_entries(runs)}
    assert sorted(listed) == ["dead", "evaluation", "first", "second", "sweep_orders"]
    states = {name: each.state for name, each in listed.items()}
    assert states == {"dead": "vanished", "evaluation": "finished", "first": "finished", "second": "failed",
                      "sweep_orders": "1 finished, 1 failed"}  # fmt: skip
    assert (listed["first"].metric, listed["first"].value) == ("train/loss", 0.25)
    assert (listed["second"].metric, listed["second"].value) == (None, None)
    assert listed["sweep_orders"].choices == {"permutation": "raster,zigzag"}
    files = [file for file in (runs / "first").rglob("*") if file.is_file()]
    assert listed["first"].bytes == sum(file.stat().st_size for file in files) > 5000


def test_the_table(runs: Path) -> None:
    lines = table(ordered(list_entries(runs), "age"), runs, 5).splitlines()
    assert lines[0].split() == ["STATE", "METRIC", "AGE", "SIZE", "TASK", "CHOICES", "FOLDER"]
    (line,) = [line for line in lines if line.endswith("/first")]
    assert "finished" in line
    assert "train/loss 0.25  " in line
    assert "2 h 01 min" in line
    assert "pretrain  digits aim_tiny raster pixels" in line
    (sweep,) = [line for line in lines if line.endswith("/sweep_orders")]
    assert "1 finished, 1 failed" in sweep
    assert "permutation=raster,zigzag" in sweep
    assert lines[-1].startswith(f"5 in {runs}, ")


def test_a_run_without_a_status_is_new(tmp_path: Path) -> None:
    make_run(tmp_path, "one", {}, {"task": "pretrain"}, {"seed": 0})
    make_run(tmp_path, "two", {"state": "interrupted", "error": "x"}, {"task": "pretrain"}, {"seed": 1})
    assert [(each.state, each.states) for each in list_entries(tmp_path)] == [
        ("new", ("new",)), ("interrupted", ("interrupted",)),
    ]  # fmt: skip
    assert [each.path.name for each in select(list_entries(tmp_path), ("new",), (), ())] == ["one"]


@pytest.mark.parametrize(
    ("states", "tasks", "where", "expected"),
    [
        ((), (), (), ["dead", "evaluation", "first", "second", "sweep_orders"]),
        (("finished",), (), (), ["evaluation", "first", "sweep_orders"]),
        (("vanished", "failed"), (), (), ["dead", "second", "sweep_orders"]),
        ((), ("knn",), (), ["evaluation"]),
        ((), ("sweep",), (), ["sweep_orders"]),
        ((), (), ("permutation=raster",), ["dead", "first", "sweep_orders"]),
        ((), (), ("seed=0",), ["evaluation", "first"]),
        ((), (), ("trainer.epochs=20", "seed=1"), ["second"]),
        (("finished",), ("pretrain",), ("permutation=zigzag",), []),
    ],
)
def test_filters(runs: Path, states, tasks, where, expected: list[str]) -> None:
    assert sorted(each.path.name for each in select(list_entries(runs), states, tasks, where)) == expected


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("name", ["dead", "evaluation", "first", "second"]),
        ("age", ["evaluation", "dead", "second", "first"]),
        ("metric", ["evaluation", "first", "dead", "second"]),
    ],
)
def test_orders(runs: Path, by: str, expected: list[str]) -> None:
    found = [each.path.name for each in ordered(list_entries(runs), by)]
    assert [name for name in found if name != "sweep_orders"] == expected
    assert ordered(list_entries(runs), "size")[0].path.name == "first"


def test_conditions_that_make_no_sense(runs: Path) -> None:
    with pytest.raises(UserError, match="--where epochs must be OPTION=VALUE"):
        select(list_entries(runs), (), (), ("epochs",))
    with pytest.raises(UserError, match="no run here has an option epoch; choices are data, model, permutation, "):
        select(list_entries(runs), (), (), ("epoch=3",))


def test_nothing_to_list(tmp_path: Path) -> None:
    assert table([], tmp_path, 0) == f"no run or sweep in {tmp_path}"
    assert table([], tmp_path, 3).endswith(f"in {tmp_path} fits these conditions")
    with pytest.raises(UserError, match="is not a folder"):
        list_entries(tmp_path / "nowhere")


def test_for_programs(runs: Path) -> None:
    found = json.loads(as_json(ordered(list_entries(runs), "name")))
    assert [each["path"] for each in found] == [str(runs / name) for name in
                                               ("dead", "evaluation", "first", "second", "sweep_orders")]  # fmt: skip
    assert found[1]["metric"] == "eval/knn_10_mean"
    assert found[1]["value"] == 92.5
    assert set(found[0]) == {"path", "state", "task", "choices", "metric", "value", "changed", "bytes"}
