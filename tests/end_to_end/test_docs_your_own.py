"""docs/your-own.md is correct: from an empty folder, its files are written and its commands are run, in its order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from semaim.models.positions import sincos_2d
from support.pages import Page, run_as_typed

PAGE = Page("your-own")


@pytest.mark.slow
def test_from_an_empty_folder_to_a_finished_run(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()

    def said(command: str, site: str = "/nowhere") -> str:
        return run_as_typed(command, work, HOME=str(home), SEMAIM_SITE=site)

    PAGE.write(work)
    helped, photos, stripes, learned, experiment, sweep, site = PAGE.commands
    assert re.search(r"data.val_fraction=null +share of every class", said(helped))
    assert "200 images of 2 classes" in said(photos)
    assert "data: 150 training images, 2 steps" in said(stripes)

    evaluated = said(learned)
    assert re.search(r"^.* knn_10_cls +[\d.]+$", evaluated, re.MULTILINE)
    (run,) = (work / "runs").glob("pretrain_stripes_learned_positions_*")
    state = torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True)
    fixed = sincos_2d(96, (8, 8))
    learned_positions = state["model"]["pos_embed"][0]
    assert torch.all(learned_positions[0] == 0), "that of the class token"
    assert 0 < (learned_positions[1:] - fixed).abs().max() < 0.5
    assert OmegaConf.load(run / "config.yaml").model._target_ == "my_models.LearnedPositions"

    finished = said(experiment)
    assert "\nOK: 1 run and 1 evaluation after" in finished
    (run,) = (work / "runs").glob("pretrain*columns_on_photos")
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert OmegaConf.load(run / "config.yaml").permutation._target_ == "my_orders.Columns"
    assert len(list((work / "runs").glob("knn_photos*"))) == 1

    assert {*re.findall(r"^permutation=(\w+) .*finished", said(sweep), re.MULTILINE)} == {"raster", "columns"}

    listed = said(site, str(home / ".config" / "semaim"))
    assert re.search(r"columns +Column by column, from left to right\.\s+\(\S+/permutation/columns\.yaml\)", listed)
    (run,) = (work / "runs").glob("pretrain_stripes_aim_tiny_columns_pixels")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["starts"][-1]["site"] == str(home / ".config" / "semaim")


def test_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.write(tmp_path, "my_orders.py")
    monkeypatch.syspath_prepend(tmp_path)
    from my_orders import Columns  # type: ignore[import-not-found]

    assert Columns()(grid=(2, 3), batch_size=1).tolist() == [[0, 3, 1, 4, 2, 5]]
