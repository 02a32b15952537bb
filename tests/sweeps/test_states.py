"""States of points: a point is finished when its job has nothing left to do for it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.core.files import write_json
from semaim.runs.folder import RunFolder
from semaim.sweeps.sweep import Point
from support.holding import holding
from support.points import RESULT, finished, shown, sweep_of


def test_a_point_is_finished_once_its_results_are_sent(tmp_path: Path) -> None:
    one, two = (finished(tmp_path / name) for name in ("one", "two"))
    with holding(one, name="submitit") as process:
        job = str(process.pid)
        sweep = sweep_of(tmp_path, "local", Point(["a=1"], str(one), job=job), Point(["a=2"], str(two), job=job))
        assert shown(sweep) == [("ending", "finished, sends its results to MLflow"), ("finished", "train/loss 0.5")]
    assert shown(sweep) == [("finished", "train/loss 0.5")] * 2


def test_a_point_is_finished_once_its_evaluations_are(tmp_path: Path) -> None:
    one, knn = finished(tmp_path / "one"), tmp_path / "knn"
    with holding(name="submitit") as job:
        point = Point(["a=1"], str(one), job=str(job.pid), then=[str(knn)])
        sweep = sweep_of(tmp_path, "local", point)
        assert shown(sweep) == [("ending", "finished, then knn")]
        with holding(knn):
            write_json(knn / "status.json", RESULT)
            assert shown(sweep) == [("ending", "finished, sends its results to MLflow")]
        assert shown(sweep) == [("finished", "train/loss 0.5")]
        (knn / "status.json").unlink()
    assert shown(sweep) == [("vanished", "its process is gone")]


def test_between_two_runs_of_one_process(tmp_path: Path) -> None:
    """The process holds no run folder while it prepares the next run."""
    first, second, third = finished(tmp_path / "first"), tmp_path / "second", tmp_path / "third"
    now = time.time_ns()
    points = [
        Point(["a=1"], str(first), job=f"here_0_{now}"),
        Point(["a=2"], str(finished(second)), job=f"here_1_{now + 1}", then=[str(tmp_path / "knn")]),
        Point(["a=3"], str(third)),
    ]
    sweep = sweep_of(tmp_path, "basic", *points)
    with holding(sweep.path):
        assert shown(sweep) == [
            ("finished", "train/loss 0.5"), ("ending", "finished, then knn"), ("pending", "for earlier runs"),
        ]  # fmt: skip
    assert shown(sweep) == [
        ("finished", "train/loss 0.5"), ("vanished", "its process is gone"), ("new", "never submitted"),
    ]  # fmt: skip


def test_the_folder_and_the_sweep_use_the_same_words(tmp_path: Path) -> None:
    """A run without a job shows what its folder holds; a dead one is recorded in its folder."""
    held = {"interrupted": "stopped by SIGTERM", "failed": "an error", "vanished": "the process was killed"}
    for state, error in held.items():
        (tmp_path / state).mkdir()
        write_json(tmp_path / state / "status.json", {"state": state, "error": error})
    (tmp_path / "dead").mkdir()
    write_json(tmp_path / "dead" / "status.json", {"state": "running"})
    names = [*held, "dead", "absent"]
    sweep = sweep_of(tmp_path, "local", *(Point([f"a={name}"], str(tmp_path / name)) for name in names))
    expected = [*held.items(), ("vanished", "its process is gone"), ("new", "never submitted")]
    assert shown(sweep) == expected
    assert RunFolder(tmp_path / "dead").status() == {"state": "vanished", "error": "its process is gone"}
    assert [point.folder.state() for point in sweep.points] == [state for state, _ in expected]
    assert not (tmp_path / "absent").exists()
    assert shown(sweep) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"after": 0},
        {"after": -1},
        {"after": 7},
        {"job": "--user=me"},
        {"job": "../1"},
        {"run_dir": "x\0y"},
        {"run_dir": "x"},
        {"then": [""]},
        None,
    ],
)
def test_a_sweep_with_impossible_values_is_damaged(
    tmp_path: Path, change: dict[str, object] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_of(tmp_path, "local", Point(["a=1"], str(finished(tmp_path / "one")), job="1")).path / "sweep.json"
    stored = json.loads(path.read_text())
    stored["points"] = [] if change is None else [stored["points"][0] | change]
    path.write_text(json.dumps(stored))
    assert main(["ls", str(tmp_path)]) == 0
    assert "damaged: sweep.json" in capsys.readouterr().out
    assert main(["cancel", str(path.parent)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is damaged, ")
