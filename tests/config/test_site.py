"""The site's settings belong to semaim's program alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from semaim.config.run_spec import compose_run_spec

APP = """\
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    print("site:", cfg.get("runs_dir"), cfg.get("colour"))

main()
"""


@pytest.fixture(autouse=True)
def _site(set_site: Callable[[str], None]) -> None:
    set_site("runs_dir: /scratch/runs")


def test_a_site_sets_options_of_semaim() -> None:
    assert compose_run_spec([]).cfg.run_dir.startswith("/scratch/runs/")
    assert compose_run_spec(["runs_dir=here"]).cfg.run_dir.startswith("here/")


def test_other_hydra_programs_do_not_see_it(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("defaults: [site]\n")
    (tmp_path / "conf" / "site.yaml").write_text("colour: red\n")  # its own file of that name
    (tmp_path / "app.py").write_text(APP)
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert done.stdout == "site: None red\n"
