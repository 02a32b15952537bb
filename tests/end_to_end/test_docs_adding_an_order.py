"""docs/adding-an-order.md is correct: its code blocks are written to files and its commands are run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from support.pages import Page, run_as_typed
from support.paths import ROOT

PAGE = Page("adding-an-order")
SPIRAL_3X4 = [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]


def run(command: str, folder: Path, **environment: str) -> str:
    """Run a command of the page, without the online k-NN, which is unrelated to orders."""
    return run_as_typed(command, folder, "evaluators=[pictures]", **environment)


def test_in_a_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    PAGE.write(tmp_path, "my_orders.py", "my_conf/permutation/spiral.yaml")
    log = run(PAGE.commands[0], tmp_path)
    assert "step 2/2" in log
    (config,) = (tmp_path / "runs").glob("*spiral*/config.yaml")
    assert "_target_: my_orders.Spiral" in config.read_text()
    name = config.parent.name
    drawn = run_as_typed(PAGE.commands[1].replace("<name>", name), tmp_path, "task.count=1", "run_name=drawn")
    assert "object_in_first_quarter/spiral" in drawn
    assert (tmp_path / "runs" / "drawn" / "pictures" / "film.gif").exists(), "it predicts in its order"

    monkeypatch.syspath_prepend(tmp_path)
    (look,) = re.findall(r"```python\n(from my_orders import .*?)```", PAGE.text, re.DOTALL)
    exec(look)
    assert capsys.readouterr().out.strip() == str([SPIRAL_3X4])
    from my_orders import Spiral  # type: ignore[import-not-found]

    assert Spiral()((4, 3), 2).tolist() == 2 * [[0, 1, 2, 5, 8, 11, 10, 9, 6, 3, 4, 7]]
    assert Spiral()((1, 3), 1).tolist() == [[0, 1, 2]]
    assert Spiral()((3, 1), 1).tolist() == [[0, 1, 2]]
    assert torch.equal(Spiral()((14, 14), 1).sort().values[0], torch.arange(196))


def test_the_page_shows_the_order_that_it_makes() -> None:
    assert f"->    {' '.join(map(str, SPIRAL_3X4))}" in PAGE.text


def test_in_semaim_itself(tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "semaim", source / "semaim", ignore=shutil.ignore_patterns("conf", "__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("experiment"))
    (source / "semaim" / "conf").symlink_to("../../conf")
    PAGE.write(tmp_path, "conf/permutation/spiral.yaml")
    module = PAGE.files["my_orders.py"]
    with (source / "semaim" / "permutations.py").open("a") as permutations:
        permutations.write("\n\n" + module[module.index("class Spiral") :])

    log = run(PAGE.commands[2], tmp_path, PYTHONPATH=str(source))
    assert "step 2/2" in log
    (config,) = (tmp_path / "runs").glob("*spiral*/config.yaml")
    assert "_target_: semaim.permutations.Spiral" in config.read_text()
