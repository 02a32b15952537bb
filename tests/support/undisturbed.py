"""Comparison of a disturbed run with an undisturbed one, in the run folder and in MLflow."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from support.commands import losses

SAME = ("architecture", "model", "ema", "optimizer", "scaler", "rng", "step", "loss")


def final_state(run_folder: Path) -> dict[str, Any]:
    """State of the newest checkpoint."""
    import torch

    return torch.load(sorted((run_folder / "checkpoints").glob("step_*.pt"))[-1], weights_only=True)


def assert_nothing_lost(run_folder: Path, undisturbed: Path) -> None:
    """Weights, moving average, optimizer, random state and losses are bit-identical, and each step occurs once."""
    from support.evaluating import assert_same_bits

    one, other = final_state(run_folder), final_state(undisturbed)
    for part in SAME:
        assert_same_bits(one[part], other[part], part)
    assert losses(run_folder) == losses(undisturbed)
    assert list(losses(run_folder)) == list(range(1, one["step"] + 1)), "every step once, in order"
    assert not list((run_folder / "checkpoints").glob("*.tmp"))


def shown(home: Path) -> dict[str, tuple[str, str]]:
    """MLflow run id and status of every run in the store of a folder, by name; asserts that names are unique."""
    with sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True, timeout=30) as store:
        rows = store.execute("SELECT name, run_uuid, status FROM runs").fetchall()
    assert len({name for name, _, _ in rows}) == len(rows), rows
    return {name: (run_id, state) for name, run_id, state in rows}


def assert_shown_once(run_folder: Path, home: Path, state: str) -> str:
    """MLflow contains the losses of a run once each, in one run with this status; returns its id."""
    run_id, found = shown(home)[run_folder.name]
    assert found == state
    assert json.loads((run_folder / "mlflow.json").read_text())["run_id"] == run_id
    with sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True, timeout=30) as store:
        query = "SELECT step, value FROM metrics WHERE key = 'train/loss' AND run_uuid = ? ORDER BY step"
        points = store.execute(query, (run_id,)).fetchall()
    assert points == sorted(losses(run_folder).items())
    return run_id
