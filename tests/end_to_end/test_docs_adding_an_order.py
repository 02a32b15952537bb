"""docs/adding-an-order.md is correct: its code blocks are written to files and its commands are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.paths import ROOT

PAGE = (ROOT / "docs" / "adding-an-order.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
SPIRAL_3X4 = [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(FILES[name])


def run(command: str, folder: Path, **environment: str) -> str:
    """Run a command of the page in a folder, without the online k-NN, which is unrelated to orders."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` is the interpreter of the tests
    done = subprocess.run(
        f"{command.strip()} evaluators=[pictures]",
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_in_a_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "my_orders.py", "my_conf/permutation/spiral.yaml")
    log = run(COMMANDS[0], tmp_path)
    assert "step 2/2" in log
    (config,) = (tmp_path / "runs").glob("*spiral*/config.yaml")
    assert "_target_: my_orders.Spiral" in config.read_text()

    monkeypatch.syspath_prepend(tmp_path)
    (look,) = re.findall(r"```python\n(from my_orders import .*?)```", PAGE, re.DOTALL)
    exec(look)
    assert capsys.readouterr().out.strip() == str([SPIRAL_3X4])
    from my_orders import Spiral  # type: ignore[import-not-found]

    assert Spiral()((4, 3), 2).tolist() == 2 * [[0, 1, 2, 5, 8, 11, 10, 9, 6, 3, 4, 7]]
    assert Spiral()((1, 3), 1).tolist() == [[0, 1, 2]]
    assert Spiral()((3, 1), 1).tolist() == [[0, 1, 2]]
    assert torch.equal(Spiral()((14, 14), 1).sort().values[0], torch.arange(196))


def test_the_page_shows_the_order_that_it_makes() -> None:
    assert f"->    {' '.join(map(str, SPIRAL_3X4))}" in PAGE


def test_in_semaim_itself(tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "semaim", source / "semaim", ignore=shutil.ignore_patterns("conf", "__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("experiment"))
    (source / "semaim" / "conf").symlink_to("../../conf")
    write(tmp_path, "conf/permutation/spiral.yaml")
    module = FILES["my_orders.py"]
    with (source / "semaim" / "permutations.py").open("a") as permutations:
        permutations.write("\n\n" + module[module.index("class Spiral") :])

    log = run(COMMANDS[1], tmp_path, PYTHONPATH=str(source))
    assert "step 2/2" in log
    (config,) = (tmp_path / "runs").glob("*spiral*/config.yaml")
    assert "_target_: semaim.permutations.Spiral" in config.read_text()
