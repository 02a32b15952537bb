"""Commands that are printed can be pasted, also where the shell does not find the programs of this environment."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from semaim.core.formatting import command, program


def executable(folder: Path, name: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return str(folder)


def test_a_program_on_the_path_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", executable(tmp_path, "semaim"))
    assert program("status", Path("runs/a b")) == "semaim status 'runs/a b'"
    assert shlex.split(command("mlflow", "ui")) == [sys.executable, "-m", "mlflow", "ui"]


def test_without_it_the_command_begins_with_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", "/my env/bin/python")
    assert program("ls") == "'/my env/bin/python' -m semaim ls"


def test_the_shell_does_not_know_the_environment_of_uvx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = executable(tmp_path / "uv" / "archive-v0" / "Xy" / "bin", "semaim")
    monkeypatch.setattr("sys.executable", f"{made}/python")
    monkeypatch.setenv("PATH", os.pathsep.join([made, str(tmp_path)]))
    assert program("ls") == f"{made}/python -m semaim ls"
    installed = executable(tmp_path / "bin", "semaim")  # by `uv tool install`
    monkeypatch.setenv("PATH", os.pathsep.join([made, installed]))
    assert program("ls") == "semaim ls"
