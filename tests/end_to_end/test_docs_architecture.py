"""docs/architecture.md names existing files, functions, packages, checkpoint keys and states."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from semaim.checkpoints import store
from semaim.runs import status
from semaim.runs.status import MLFLOW_STATUS, OVER, RunState
from support.commands import SMALL, succeed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SRC = ROOT / "src" / "semaim"
SECTIONS = (  # with names of files and functions
    "Where is ...?", "Where weights come from", "Contracts", "What a checkpoint holds", "States of a run",
)  # fmt: skip


def section(title: str) -> str:
    """Text below a heading."""
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Cells of the first table of a section, without its header."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


def test_files_and_functions_exist() -> None:
    found = 0
    for text in (
        section("Where is ...?"),
        section("What a checkpoint holds"),
        section("States of a run"),
        section("Where weights come from"),
        section("Contracts"),
    ):
        for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text):
            missing = set(re.findall(r"`([\w.]+)`", names)) - names_in(SRC / path)
            assert not missing, f"{path} has no {missing}"
            found += 1
        for path in re.findall(r"`([\w/]+\.py)`", text):
            assert (SRC / path).is_file() or (ROOT / path).is_file(), path
    assert found >= 20


@pytest.mark.parametrize("question", ["an order defined", "the training step taken", "a checkpoint written",
                                      "a metric go to MLflow", "a SLURM job start"])  # fmt: skip
def test_the_first_table_answers(question: str) -> None:
    assert question in PAGE.split("\n## ")[1]


def test_packages_are_those_of_the_import_contract() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    contract = [set(re.split(r" [|:] ", layer)) - {"__main__"} for layer in reversed(layers)]
    listed = [re.findall(r"`(\w+)`", first) for first, _ in rows("Packages")]
    flat = [name for names in listed for name in names]
    on_disk = {p.stem for p in SRC.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert set(flat) == on_disk - {"__init__", "__main__"}
    for layer in filter(None, contract):  # names within a layer in any order, layers from bottom to top
        assert set(flat[: len(layer)]) == layer
        flat = flat[len(layer) :]
    assert not flat


def test_keys_of_a_checkpoint(tmp_path: Path) -> None:
    succeed(tmp_path, *SMALL, "trainer.max_steps=1", "run_name=x")
    state = store.load(tmp_path / "runs" / "x" / "checkpoints" / "step_00000001.pt")
    listed = [key for first, *_ in rows("What a checkpoint holds") for key in re.findall(r"`(\w+)`", first)]
    assert sorted(listed) == sorted(state)


def test_states_are_complete() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows("States of a run")}
    assert list(table) == list(get_args(RunState))
    assert {name: cells[1].strip("`") for name, cells in table.items() if cells[1]} == MLFLOW_STATUS
    assert [name for name, cells in table.items() if cells[2] == "yes"] == list(OVER)
    listed = re.findall(r"^\| (\w+) \| (.+) \|$", status.__doc__ or "", re.MULTILINE)[1:]
    assert listed == [(name, cells[0]) for name, cells in table.items()]
