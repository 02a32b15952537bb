"""What a sweep says of its results: by what was swept, also of unfinished, failed, extended and dependent points."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from semaim.core.comparison import Comparison, Group
from semaim.core.files import write_json
from semaim.runs.folder import Tracked
from semaim.runs.journal import View
from semaim.sweeps.commands import show
from semaim.sweeps.comparison import comparison, comparison_text, groups
from semaim.sweeps.listing import list_entries
from semaim.sweeps.listing import table as listed
from semaim.sweeps.mlflow_parent import description, summary, view
from semaim.sweeps.states import PointState, states
from semaim.sweeps.sweep import Executor, Point, Sweep
from semaim.tracking.pages import tracked_page_commands
from semaim.tracking.views import sweep_view, view_key

PRETRAINED = {"state": "finished", "metric": "loss"}
FAILED = {"state": "failed", "error": "broken"}


def pretrained(accuracy: float) -> dict[str, object]:
    return PRETRAINED | {
        "result": {"loss": 0.5, "online/knn_10_mean_before": 1.0, "online/knn_10_mean_after": accuracy}
    }


def evaluated(accuracy: float, task: str = "knn_10_mean") -> dict[str, object]:
    return {"state": "finished", "metric": task, "result": {task: accuracy, f"{task}_top5": 99.0}}


def sweep_of(
    folder: Path, *points: tuple[str, dict[str, object] | None, dict[str, object] | None], executor: Executor = "local"
) -> Sweep:
    """A sweep of command lines, each with the status of its pretraining and of its evaluation (None: not there)."""
    made: list[Point] = []
    for number, (words, run, evaluation) in enumerate(points):
        run_dir, knn_dir = folder / f"{number}", folder / f"{number}_knn"
        for path, status in ((run_dir, run), (knn_dir, evaluation)):
            path.mkdir(parents=True, exist_ok=True)
            if status is not None:
                write_json(path / "status.json", status)
        made.append(Point([*words.split(), "trainer.epochs=4"], str(run_dir), job=f"1_{number}", then=[str(knn_dir)]))
        if executor == "slurm":
            made[-1].then = []
            made.append(Point(["task=knn"], str(knn_dir), after=len(made) - 1, job=f"2_{number}"))
    sweep = Sweep(executor, {}, made, 0, "semaim run -m", path=folder / "sweep")
    sweep.save()
    return sweep


def table(sweep: Sweep, found: list[PointState] | None = None) -> list[list[str]]:
    """The cells of the comparison."""
    compared = comparison(sweep, found or states(sweep))
    assert compared is not None
    return compared.rows(compared.metrics)


def test_seeds_are_averaged_and_a_failed_point_is_missing_in_their_number(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        ("permutation=raster seed=0", pretrained(80.0), evaluated(90.0)),
        ("permutation=raster seed=1", pretrained(82.0), evaluated(92.0)),
        ("permutation=zigzag seed=0", pretrained(85.0), evaluated(95.0)),
        ("permutation=zigzag seed=1", pretrained(87.0), FAILED),
        ("permutation=stochastic seed=0", FAILED, None),
        ("permutation=stochastic seed=1", {"state": "running", "step": 1}, None),
    )
    assert table(sweep) == [
        ["", "permutation", "eval/knn_10_mean", "online/knn_10_mean"],
        ["best", "zigzag", "95.0 (1)", "86.0 ± 1.4 (2)"],
        ["", "raster", "91.0 ± 1.4 (2)", "81.0 ± 1.4 (2)"],
        ["", "stochastic", "-", "-"],
    ]
    said = comparison_text(sweep, states(sweep)).splitlines()
    assert said[0] == "3 of 6 runs: mean ± deviation over seeds (number of runs), best first"
    assert said[-1] == ("best by eval/knn_10_mean: zigzag, 4.0 ahead of raster; one of them has one seed: the "
                        "difference may be noise")  # fmt: skip
    assert comparison_text(sweep, states(sweep), brief=True) == f"3 of 6 runs: {said[-1]}"
    assert f"\n\n{said[0]}\n" in show([sweep.path]).text
    assert show([sweep.path, sweep.path]).text.count(f"\n3 of 6 runs: {said[-1]}\n\n") == 1


def test_evaluations_that_are_jobs_of_their_own_count_for_their_pretraining(tmp_path: Path) -> None:
    """As of SLURM."""
    sweep = sweep_of(
        tmp_path,
        ("permutation=raster seed=0", pretrained(80.0), evaluated(90.0)),
        ("permutation=raster seed=1", pretrained(80.0), None),
        ("permutation=zigzag seed=0", pretrained(80.0), evaluated(70.0)),
        executor="slurm",
    )
    sweep.executor = "basic"  # asks no SLURM
    assert table(sweep)[1:] == [
        ["best", "raster", "90.0 (1)", "80.0 ± 0.0 (2)"], ["", "zigzag", "70.0 (1)", "80.0 (1)"],
    ]  # fmt: skip


def test_in_a_list_a_sweep_has_its_best_mean(tmp_path: Path) -> None:
    rows = [(f"permutation={order} seed={n}", pretrained(80.0 + n), None) for order in ("raster",) for n in (0, 1)]
    sweep_of(tmp_path, *rows, ("permutation=zigzag seed=0", pretrained(90.04), None))
    (entry,) = [entry for entry in list_entries(tmp_path) if entry.task == "sweep"]
    assert (entry.metric, entry.value) == ("online/knn_10_mean", 90.04)
    assert "  best online/knn_10_mean 90.0  " in listed([entry], tmp_path, 1)
    (tmp_path / "0" / "status.json").write_text("{")
    (damaged,) = [entry for entry in list_entries(tmp_path) if entry.task == "sweep"]
    assert (damaged.metric, damaged.value) == (None, None)


def test_two_options_and_seeds_alone(tmp_path: Path) -> None:
    lines = [f"+a={a} b={b} seed=0" for a in "xy" for b in "12"]
    two = sweep_of(tmp_path / "two", *((words, pretrained(80.0 + n), None) for n, words in enumerate(lines)))
    assert [row[:3] for row in table(two)[:2]] == [["", "a", "b"], ["best", "y", "2"]]
    seeds = sweep_of(tmp_path / "seeds", *((f"seed={n}", pretrained(80.0 + n), None) for n in range(3)))
    assert table(seeds) == [["online/knn_10_mean"], ["81.0 ± 1.0 (3)"]]
    point = sweep_of(tmp_path / "one", ("seed=0", pretrained(80.0), evaluated(90.0)))
    assert comparison(point, states(point)) is None
    assert show([point.path]).comparisons == []


def test_tasks_have_nothing_in_common(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path, ("task=knn", evaluated(90.0), None), ("task=linprobe", evaluated(95.0, "linprobe_cls"), None)
    )
    assert table(sweep) == [
        ["task", "eval/linprobe_cls", "eval/knn_10_mean"], ["knn", "-", "90.0 (1)"], ["linprobe", "95.0 (1)", "-"],
    ]  # fmt: skip
    drawn = {"state": "finished", "metric": "images", "result": {"images": 20}}
    pictures = sweep_of(tmp_path / "p", ("permutation=raster", drawn, None), ("permutation=zigzag", drawn, None))
    assert comparison(pictures, states(pictures)) is None


def encoder(folder: Path, name: str, order: str, seed: int, lr: float) -> str:
    """A run folder of a pretraining, as far as it is read."""
    (folder / name).mkdir(parents=True)
    start = {"choices": {"task": "pretrain", "permutation": order, "model": "aim_tiny"}}
    (folder / name / "environment.json").write_text(json.dumps({"starts": [start]}))
    config = {"seed": seed, "run_name": name, "permutation": {"_target_": order}, "optimizer": {"base_lr": lr}}
    (folder / name / "config.yaml").write_text(json.dumps(config))
    return f"checkpoint={folder / name}"


def test_a_sweep_over_checkpoints_is_compared_by_their_pretrainings(tmp_path: Path) -> None:
    """Two seeds of each are averaged; other checkpoints are told apart by their names."""
    made = [(order, seed) for order in ("raster", "zigzag") for seed in (0, 1)]
    words = [encoder(tmp_path, f"{order}-{seed}", order, seed, 0.1) for order, seed in made]
    sweep = sweep_of(tmp_path / "a", *((each, evaluated(90.0 + n), None) for n, each in enumerate(words)))
    assert table(sweep) == [
        ["", "permutation", "eval/knn_10_mean"], ["best", "zigzag", "92.5 ± 0.7 (2)"], ["", "raster", "90.5 ± 0.7 (2)"],
    ]  # fmt: skip
    faster = encoder(tmp_path, "faster", "zigzag", 0, 0.5)
    more = sweep_of(tmp_path / "b", *((each, evaluated(90.0), None) for each in (*words, faster)))
    assert [group.options for group in groups(more, states(more))] == [
        {"permutation": "raster", "optimizer.base_lr": "0.1"}, {"permutation": "zigzag", "optimizer.base_lr": "0.1"},
        {"permutation": "zigzag", "optimizer.base_lr": "0.5"},
    ]  # fmt: skip
    other = sweep_of(tmp_path / "c", *((each, evaluated(90.0), None) for each in (words[0], "checkpoint=timm:vit_x")))
    named = [group.options for group in groups(other, states(other))]
    assert named == [{"checkpoint": str(tmp_path / "raster-0")}, {"checkpoint": "timm:vit_x"}]


def test_evaluations_of_the_same_checkpoints_are_columns_of_one_table(tmp_path: Path) -> None:
    """As in the report: the most demanding one decides. Tasks that measure the same remain rows."""
    words = [
        encoder(tmp_path, f"{order}-{seed}", order, seed, 0.1) for order in ("raster", "zigzag") for seed in (0, 1)
    ]
    points = [(f"task={task} {word}", evaluated(value + n, metric), None)
              for task, metric, value in (("knn", "knn_10_mean", 90.0), ("linprobe", "linprobe_cls", 80.0))
              for n, word in enumerate(words)]  # fmt: skip
    sweep = sweep_of(tmp_path / "a", *points)
    assert table(sweep) == [
        ["", "permutation", "eval/linprobe_cls", "eval/knn_10_mean"],
        ["best", "zigzag", "82.5 ± 0.7 (2)", "92.5 ± 0.7 (2)"], ["", "raster", "80.5 ± 0.7 (2)", "90.5 ± 0.7 (2)"],
    ]  # fmt: skip
    same = [(f"task={task} {words[0]}", evaluated(value, "mine"), None) for task, value in (("a", 80.0), ("b", 70.0))]
    other = sweep_of(tmp_path / "b", *same)
    assert [group.options for group in groups(other, states(other))] == [{"task": "a"}, {"task": "b"}]


def test_the_page_in_mlflow(tmp_path: Path) -> None:
    """Its table and its metrics are those of the comparison; runs that did not finish are listed with their errors."""
    sweep = sweep_of(
        tmp_path,
        ("permutation=raster seed=0", pretrained(80.0), evaluated(90.0)),
        ("permutation=raster seed=1", pretrained(82.0), evaluated(92.0)),
        ("permutation=zigzag seed=0", pretrained(85.0), evaluated(95.0)),
    )
    said = description(sweep, states(sweep), comparison(sweep, states(sweep)))
    assert "\n\n3 runs: mean ± deviation over seeds (number of runs), best first\n\n" in said
    assert "| best | zigzag      | 95.0 (1)         | 85.0 (1)           |" in said
    assert "| run | state |" not in said
    metrics = summary(sweep, states(sweep))
    assert metrics == pytest.approx({
        "sweep/finished": 3, "sweep/failed": 0, "sweep/best_loss": 0.5, "sweep/mean_loss": 0.5,
        "sweep/best_online_knn_10_mean": 85.0, "sweep/mean_online_knn_10_mean": 247 / 3,
        "sweep/best_knn_10_mean": 95.0, "sweep/mean_knn_10_mean": 277 / 3,
    })  # fmt: skip
    write_json(tmp_path / "2" / "status.json", FAILED)
    assert "| `permutation=zigzag seed=0` | failed: broken |" in description(
        sweep, states(sweep), comparison(sweep, states(sweep))
    )


def test_the_view_in_mlflow_sorts_by_the_metric_that_decides(tmp_path: Path) -> None:
    """One point has no evaluation: all are compared, and sorted, by what they have in common; of a loss the least."""
    sweep = sweep_of(
        tmp_path,
        ("permutation=raster", pretrained(80.0), evaluated(95.0)),
        ("permutation=zigzag", pretrained(85.0), FAILED),
    )
    found = states(sweep)
    compared = comparison(sweep, found)
    assert compared is not None
    assert compared.metric == "online/knn_10_mean"
    (sweep.path / "environment.json").write_text(json.dumps({"starts": [{"title": "t", "swept": ["permutation"]}]}))
    assert view(sweep, found, comparison(sweep, found))["metrics"] == ["online/knn_10_mean", "eval/knn_10_mean"]

    parent: Tracked = {"uid": "u", "experiment": "e", "run_id": "r", "sent": 0}
    losses: View = {"name": "t", "groups": [], "columns": [], "metrics": ["train/loss"]}
    for metric, ascending in (("train/loss", True), ("eval/knn_10_mean", False)):
        _, tag = sweep_view(losses | {"metrics": [metric]}, parent, 0)
        assert json.loads(tag)["orderByAsc"] is ascending


def test_where_to_look_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path, ("seed=0", pretrained(80.0), None), ("seed=1", pretrained(80.0), None))
    assert tracked_page_commands(sweep.folder) == {}
    state = {"uid": "u", "experiment": "x", "run_id": "abc", "sent": 0, "experiment_id": "7"}
    write_json(sweep.path / "mlflow.json", state | {"uri": "http://server:5000"})
    page = f"/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey={view_key('abc')}"
    assert comparison_text(sweep, states(sweep)).splitlines()[-1] == f"look at it: open http://server:5000{page}"
    monkeypatch.chdir(tmp_path)
    write_json(sweep.path / "mlflow.json", state | {"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    assert comparison_text(sweep, states(sweep)).splitlines()[-2:] == [
        "look at it: mlflow ui --backend-store-uri sqlite:///mlflow.db",
        f"and open:   http://127.0.0.1:5000{page}",
    ]
    (sweep.path / "mlflow.json").write_text("{")
    assert comparison_text(sweep, states(sweep)).splitlines()[-1] == "80.0 ± 0.0 (2)"


def test_the_methods_of_a_sweep_are_a_column(tmp_path: Path) -> None:
    """As the run folders record them; of a point that has not started, that of its other seed."""
    only_loss = PRETRAINED | {"result": {"loss": 0.5}}
    points = [(f"model={model} seed={seed}", only_loss, None) for model in ("aim_tiny", "mae_tiny") for seed in (0, 1)]
    sweep = sweep_of(tmp_path, *points)
    for number, method in enumerate(["SemAIM", "SemAIM", "MAE"]):
        start = {"choices": {"task": "pretrain"}, "method": method}
        (tmp_path / f"{number}" / "environment.json").write_text(json.dumps({"starts": [start]}))
    assert table(sweep) == [
        ["model", "method", "train/loss"],
        ["aim_tiny", "SemAIM", "0.5 ± 0 (2)"],
        ["mae_tiny", "MAE", "0.5 ± 0 (2)"],
    ]
    assert comparison_text(sweep, states(sweep)).splitlines()[-1].startswith("no winner: losses do not compare what is")
    assert view(sweep, states(sweep), comparison(sweep, states(sweep)))["columns"] == ["tags.`method`"]
    sizes = sweep_of(tmp_path / "sizes", ("model=aim_tiny", only_loss, None), ("model=aim_small", only_loss, None))
    for number in (0, 1):
        start = {"choices": {"task": "pretrain"}, "method": "SemAIM"}
        (tmp_path / "sizes" / f"{number}" / "environment.json").write_text(json.dumps({"starts": [start]}))
    assert table(sizes)[0] == ["model", "train/loss"]
    evaluated_ones = [(f"checkpoint={tmp_path / str(number)}", evaluated(90.0 + number), None) for number in (0, 2)]
    assert table(sweep_of(tmp_path / "knn", *evaluated_ones))[1][2:] == ["MAE", "92.0 (1)"]


def test_a_sweep_over_methods_is_grouped_by_their_names() -> None:
    """`method=mae` is no parameter of a run: its tag `method` has the name, and the tag `model` the size."""
    start = {"choices": {"model": "mae_tiny"}, "swept": ["method", "size", "seed"], "title": "methods"}
    sweep: Any = SimpleNamespace(folder=SimpleNamespace(last_start=lambda: start), path=Path("sweep_x"))
    found = view(sweep, [], Comparison([Group({"method": "MAE"}, {})], None))
    assert found["groups"] == [["tag", "method"], ["tag", "model"]]
    assert found["columns"] == ["tags.`method`", "tags.`model`", "params.`seed`"]
