"""An MLflow store of evaluation runs, written by MLflow's own client with the tags and metrics of real evaluations.

Also helpers to read the report of such a store.
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from pandas import DataFrame

from semaim.cli import main
from semaim.report.store import choose, opened, read
from semaim.report.table import arranged, pool
from semaim.tracking.store import SQLITE

REPORT = (sys.executable, "-m", "semaim", "report")


class Store:
    """An MLflow store; by default, each added run starts one second after the previous one."""

    def __init__(self, path: Path) -> None:
        from mlflow import MlflowClient

        self.path = path
        self.uri = f"{SQLITE}{path}"
        self.client = MlflowClient(self.uri)
        self.seconds = 100

    def experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self.client.create_experiment(name))

    def add(
        self, tags: dict[str, str], metrics: dict[str, float], *, seed: int = 0, status: str = "FINISHED",
        experiment: str = "small", seconds: int | None = None,
    ) -> str:  # fmt: skip
        """Add a run and return its id."""
        from mlflow.entities import Metric, Param

        self.seconds += 1
        start = 1000 * (self.seconds if seconds is None else seconds)
        run = self.client.create_run(self.experiment(experiment), start_time=start, tags=tags)
        logged = [Metric(name, value, start, 0) for name, value in metrics.items()]
        self.client.log_batch(run.info.run_id, metrics=logged, params=[Param("seed", str(seed))])
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    def contents(self) -> list[Any]:
        """Number of rows of each table."""
        with sqlite3.connect(self.path) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
            return [(name, database.execute(f"SELECT COUNT(*) FROM {name}").fetchone()) for (name,) in tables]


def tags(task: str, run: str, order: str = "attention_center", seed: int = 0, **others: str) -> dict[str, str]:
    """Tags of an evaluation of a small encoder on digits; double underscores in keys stand for dots."""
    name = {"attention_center": "SemAIM", "raster": "ViT-iGPT", "stochastic": "SAIM"}.get(order, f"AIM, {order}")
    usual = {
        "pretrained.method": name,
        "pretrained.model": "aim_tiny",
        "pretrained.permutation": order,
        "pretrained.target": "pixels",
    }
    more = {"pretrained.data": "digits", "pretrained.device": "cpu", "pretrained.seed": str(seed)}
    changed = {key.replace("__", "."): value for key, value in others.items()}
    return {"task": task, "data": "digits", "pretrained.run": run, **usual, **more, **changed}


def after(epochs: float, images: float, hours: float, **accuracies: float) -> dict[str, float]:
    """Metrics of an evaluation: pretraining cost, and accuracies in percent."""
    cost = {"pretrained/epochs": epochs, "pretrained/images_seen": images, "pretrained/device_hours": hours}
    return cost | {f"eval/{name}": value for name, value in accuracies.items()}


def fill_with_digits(store: Store) -> None:
    """Three seeds of one method, two lengths of another, one random encoder."""
    for seed, accuracy in enumerate([93.0, 94.0, 95.5]):
        knn = {"knn_10_cls": 90.0 + seed, "knn_10_mean": accuracy, "knn_20_mean": 92.0, "knn_30_mean": 91.0}
        metrics = after(10, 14370, (seed + 2) / 100, **knn, knn_20_cls=89.0, knn_30_cls=88.0)
        store.add(tags("knn", f"centre-{seed}", seed=seed, sweep="orders"), metrics)
    again = tags("knn", "centre-0")
    store.add(again, after(10, 14370, 0.02, knn_10_mean=10.0), seconds=50)  # older, so the newer run counts
    for status in ("RUNNING", "FAILED", "KILLED"):
        store.add(again, after(10, 14370, 0.02, knn_10_mean=1.0), status=status)
    deleted = store.add(again, after(10, 14370, 0.02, knn_10_mean=2.0))
    store.client.delete_run(deleted)
    online = tags("pretrain", "centre-0")
    store.add(online, {"eval/knn_10_mean": 3.0})
    for seed, accuracy in enumerate([95.0, 96.0]):
        store.add(tags("linprobe", "centre-0"), after(10, 14370, 0.02, linprobe_cls=accuracy), seed=seed)
    store.add(tags("knn", "raster", "raster"), after(10, 14370, 0.5, knn_10_mean=90.04))
    store.add(tags("knn", "raster", "raster"), after(20, 28740, 1.25, knn_10_mean=91.0))
    shots = {"knn_20_mean_5shot": 71.2, "knn_20_mean_5shot_std": 1.34, "linprobe_cls_1shot": 40.0}
    store.add(tags("fewshot", "centre-0"), after(10, 14370, 0.02, **shots))
    for seed, accuracy in enumerate([60.0, 62.0]):
        shots = {"knn_20_mean_5shot": accuracy, "knn_20_mean_5shot_std": 9.0}
        store.add(tags("fewshot", "raster", "raster"), after(10, 14370, 0.5, **shots), seed=seed)
    for seed, accuracy in enumerate([81.0, 79.0]):
        random = {"task": "knn", "data": "digits", "pretrained.run": "random", "pretrained.model": "aim_tiny"}
        store.add(random | {"pretrained.seed": str(seed)}, {"eval/knn_10_mean": accuracy})


def fill_with_imagenet(store: Store) -> None:
    """A large encoder on GPUs, and an encoder of another project."""
    large = {"data": "imagenet", "pretrained__data": "imagenet", "pretrained__device": "cuda"}
    accuracies = {"finetune": 84.0, "finetune_best": 84.2, "finetune_ema": 84.3}
    base = tags("finetune", "base", pretrained__model="aim_base", **large)
    store.add(base, after(800, 1024934400, 1234.5, **accuracies) | {"pretrained/flops": 1.3e20}, experiment="big")
    foreign = {"task": "finetune", "data": "imagenet", "pretrained.run": "timm:vit_base_patch16_224.mae"}
    store.add(foreign, {"eval/finetune": 83.4}, experiment="big")
    store.add(foreign | {"pretrained.run": "other.pth"}, {"eval/finetune": 70.0}, experiment="big")


def accuracies(store: Store, *others: DataFrame, wanted: tuple[tuple[str, str], ...] = ()) -> DataFrame:
    """The table of accuracies of the evaluations that have the wanted tags, followed by other tables."""
    with opened(store.uri):
        return arranged(pool(choose(read([]), wanted)), *others)


def machine_lines(folder: Path) -> list[dict[str, str]]:
    with open(folder / "report.csv", newline="") as file:
        return list(csv.DictReader(file))


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text, each a list of rows (cells by column)."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[dict(zip(t[0], line, strict=True)) for line in t[2:]] for t in found if t]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with exit code 2 and one message; return the message."""
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err
