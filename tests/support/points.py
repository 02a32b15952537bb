"""Sweeps of points whose run folders have a state, and how their states are shown."""

from __future__ import annotations

from pathlib import Path

from semaim.core.files import write_json
from semaim.sweeps.states import states
from semaim.sweeps.sweep import Executor, Point, Sweep

RESULT = {"state": "finished", "metric": "loss", "result": {"loss": 0.5}}


def sweep_of(tmp_path: Path, executor: Executor, *points: Point) -> Sweep:
    sweep = Sweep(executor, {}, list(points), 0, "semaim run -m", path=tmp_path / "sweep")
    sweep.save()
    return sweep


def finished(path: Path) -> Path:
    path.mkdir()
    write_json(path / "status.json", RESULT)
    return path


def shown(sweep: Sweep) -> list[tuple[str, str]]:
    return [(state.name, state.detail) for state in states(sweep)]
