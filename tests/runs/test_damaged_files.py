"""Damaged files of runs and sweeps: every command names the file in one line, and goes on with the other runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semaim.core.files import write_json
from semaim.lifecycle import execute, session
from semaim.runs.folder import RunFolder
from semaim.sweeps.sweep import Point, Sweep, failure_file
from support.commands import SMALL
from support.damaging import OF_BYTES, OF_VALUES, damage, semaim, told
from support.in_process import go, job

STRUCTURED = ("status.json", "environment.json", "evaluations.json", "config.yaml", "mlflow.json", "metrics.jsonl")
ALL = [*OF_BYTES, *OF_VALUES]
OVERRIDES = [word for word in SMALL if not word.startswith(("tracking", "evaluators"))]
OVERRIDES += ["evaluators=[knn,pictures]", "task.evaluators.pictures.images=2", "task.evaluators.pictures.drawn=1"]
OVERRIDES += ["tracking.system_metrics_seconds=0", "tracking.flush_seconds=20"]


class Place:
    """A folder with runs `good`, `bad` and `evaluation`, and a sweep; the files are put back before each use."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.kept = folder, folder / "runs", folder / "kept"
        tracking = f"tracking.uri=sqlite:///{self.folder}/mlflow.db"
        overrides = [*OVERRIDES, tracking, f"runs_dir={self.runs}", "trainer.max_steps=1"]
        self.overrides = [*overrides, "run_name=bad", "trainer.max_steps=2"]
        go(self.runs, *overrides, "run_name=good")
        shutil.copytree(self.runs / "good", self.runs / "bad")
        for file in ("config.yaml",):
            path = self.runs / "bad" / file
            path.write_text(path.read_text().replace("/good", "/bad").replace("run_name: good", "run_name: bad"))
        self.spec = job(*self.overrides)
        knn = [f"runs_dir={self.runs}", "run_name=evaluation", "task=knn", f"checkpoint={self.runs}/bad", tracking]
        self.evaluation = job(*knn, "tracking.flush_seconds=20")
        for name, then in (("done", []), ("stopped", [])):
            shutil.copytree(self.runs / ("good" if name == "done" else "bad"), self.runs / name)
        RunFolder(self.runs / "stopped").set_status("failed", error="a reason", step=1)
        points = [Point([f"seed={n}"], str(self.runs / name), job=f"here_{n}", then=[])
                  for n, name in enumerate(("done", "stopped"))]  # fmt: skip
        points.append(Point(["seed=2"], str(self.runs / "never"), job="here_2"))
        self.sweep = Sweep(
            "basic", {}, points, restarts=1, command="semaim run -m seed=0,1,2", path=self.runs / "sweep"
        )
        self.sweep.save()
        write_json_of(failure_file(self.sweep.jobs / "here_2", 0), {"error": "no", "process": 1, "host": "node"})
        (self.sweep.jobs / "here_1").mkdir()
        (self.sweep.jobs / "here_1" / "deaths").write_text("0 2026-01-01T00:00 task 3: Killed\n")
        shutil.copytree(self.runs, self.kept)

    def restore(self) -> None:
        shutil.rmtree(self.runs)
        shutil.copytree(self.kept, self.runs)

    def execute(self, spec) -> None:
        with session("cpu") as (processes, stop):
            execute(spec, processes, stop)

    def readers(self) -> dict[str, Callable[[], tuple[int, str]]]:
        bad = str(self.runs / "bad")
        check = [word for word in self.overrides if not word.startswith("task.evaluators")]
        return {
            "ls": lambda: semaim("ls", str(self.runs)),
            "ls --json": lambda: semaim("ls", str(self.runs), "--json"),
            "status": lambda: semaim("status", bad, str(self.runs / "good")),
            "check": lambda: semaim("check", *self.overrides),
            "sync": lambda: semaim("sync", bad, str(self.runs / "good")),
            "report": lambda: semaim(
                "report", "--uri", f"sqlite:///{self.folder}/mlflow.db", "--output", str(self.runs / "report")
            ),
            "export": lambda: semaim("export", bad),
            "cancel": lambda: semaim("cancel", bad),
            "run": lambda: told(lambda: self.execute(self.spec)),
            "evaluate": lambda: told(lambda: self.execute(self.evaluation)),
            "rm": lambda: semaim("rm", "--yes", "--keep-mlflow", bad),
        }


def write_json_of(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("damaged"))
