"""docs/adding-a-task.md is correct: its code blocks are written to files and its commands are run."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import semaim.tasks.task as contract
from support.commands import SMALL, journal, status
from support.pages import Page, run_as_typed

PAGE = Page("adding-a-task")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page was followed."""
    folder = tmp_path_factory.mktemp("task")
    PAGE.write(folder)
    return folder


@pytest.fixture(scope="module")
def screen(place: Path) -> str:
    """What the commands of the page print."""
    (commands,) = PAGE.commands
    return run_as_typed(commands, place)


def test_the_page_makes_a_task(place: Path, screen: str) -> None:
    assert "OK: 1 run, 1 process each, about 0.0 GPU-hours" in screen  # of `semaim check`
    (folder,) = (place / "runs").glob("nearest_mean_of_encoder*")
    result = status(folder)["result"]
    assert set(result) == {"nearest_mean_cls", "nearest_mean_mean"}
    assert status(folder)["metric"] == "nearest_mean_mean"
    assert all(name in screen for name in result)
    (logged,) = [line["metrics"] for line in journal(folder) if "eval/nearest_mean_cls" in line.get("metrics", {})]
    assert logged == {f"eval/{name}": value for name, value in result.items()}


@pytest.mark.usefixtures("screen")
def test_its_accuracy_is_that_of_the_features(place: Path) -> None:
    """Computed anew from the exported features, in numpy."""
    run_as_typed("semaim features checkpoint=runs/encoder tracking=none run_name=exported", place)
    (folder,) = (place / "runs").glob("nearest_mean_of_encoder*")
    parts = [np.load(place / "runs" / "exported" / f"{part}.npz") for part in ("train", "val")]
    for kind in ("cls", "mean"):
        means_CD = np.stack([parts[0][kind][parts[0]["labels"] == c].mean(0) for c in range(10)])
        distance_QC = ((parts[1][kind][:, None] - means_CD) ** 2).sum(-1)
        accuracy = 100 * float((distance_QC.argmin(1) == parts[1]["labels"]).mean())
        assert status(folder)["result"][f"nearest_mean_{kind}"] == pytest.approx(accuracy, abs=0.6)  # ties in float32


def test_it_may_follow_a_pretraining(place: Path) -> None:
    words = ["--config-dir my_conf", "'then=[nearest_mean]'", *SMALL, "trainer.max_steps=1", "run_name=first"]
    run_as_typed(f"PYTHONPATH=$PWD semaim run {' '.join(words)}", place)
    evaluated = [path for path in (place / "runs").glob("nearest_mean_*") if "first" in path.name]
    assert [status(path)["state"] for path in evaluated] == ["finished"]


def test_the_page_names_every_method_of_the_contract() -> None:
    (task,) = [node for node in ast.parse(Path(contract.__file__).read_text()).body
               if isinstance(node, ast.ClassDef) and node.name == "Task"]  # fmt: skip
    methods = [node.name for node in task.body if isinstance(node, ast.FunctionDef)]
    assert len(methods) == 7
    assert [name for name in methods if f"`{name}(" not in PAGE.text] == []
