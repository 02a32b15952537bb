"""Checkpoints shared by several test files. No test changes those of a whole session."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semaim.checkpoints import store
from support.encoders import MODEL, SMALLER
from support.in_process import go, run
from support.paths import GOLDEN_PIXELS
from support.saving import state_of

AVERAGED = ("trainer.ema=true", "trainer.ema_decay=[0.5,0.5]", "trainer.warmup_epochs=0")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of two steps with a moving average."""
    return run(tmp_path_factory.mktemp("pretrained"), *SMALLER, *AVERAGED, "seed=5")


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Run folder of a two-step fine-tuning."""
    options = ("task=finetune", "trainer.max_steps=2", "trainer.batch_size=16", "run_name=tuned")
    return go(tmp_path_factory.mktemp("tuned"), *MODEL, *options, f"checkpoint={pretrained}")


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of SemAIM's code, and the output of that code."""
    path = tmp_path_factory.mktemp("official") / "checkpoint.pth"
    with np.load(GOLDEN_PIXELS) as arrays:
        theirs = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config_json"}
        config = json.loads(str(arrays["config_json"]))
    state = {f"module.{name[6:]}": value for name, value in theirs.items() if name.startswith("state/")}
    torch.save({"state_dict": state, "epoch": 3, "model": "aim_base"}, path)
    return path, theirs | {"config": config}


@pytest.fixture
def folder(tmp_path, caplog, monkeypatch):
    """A checkpoint folder; warnings are captured."""
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)  # an earlier run may have disabled it
    caplog.set_level(logging.WARNING, logger="semaim")
    return tmp_path / "checkpoints"


@pytest.fixture
def three(folder):
    """A folder with checkpoints of steps 1, 2 and 3."""
    for step in (1, 2, 3):
        store.save(folder, step, state_of(step))
    return folder
