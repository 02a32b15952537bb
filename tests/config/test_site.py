"""The site's folder: settings and groups, for semaim's program alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from semaim.config.completion import option_words
from semaim.config.compose import CONF, choices, points
from semaim.config.help import help_page
from semaim.config.messages import explain
from semaim.config.run_spec import compose_run_spec
from support.commands import ENVIRONMENT, RUN, SMALL, finished

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


ORDER = """\
import torch
from semaim.permutations import Permutation

class Backwards(Permutation):
    def priority(self, grid, noise_BK, semantic_map_BL):
        return torch.arange(grid[0] * grid[1], 0, -1)
"""


def own_order(tmp_path: Path) -> Path:
    """The site's folder, with an order of its own, whose module is in the folder `here`."""
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    (here / "my_backwards.py").write_text(ORDER)
    (site / "permutation").mkdir()
    (site / "permutation" / "backwards.yaml").write_text("# From the end.\n_target_: my_backwards.Backwards\n")
    return site


def message(*words: str, folders: Sequence[str] = ()) -> str:
    with pytest.raises(Exception) as caught:
        compose_run_spec(words, folders)
    return str(explain(caught.value))


def test_groups_of_a_site(tmp_path: Path) -> None:
    own_order(tmp_path)
    spec = compose_run_spec(["permutation=backwards"])
    assert spec.config["permutation"] == {"_target_": "my_backwards.Backwards"}
    assert "config-dir" not in spec.command
    assert "backwards" in choices("permutation")
    assert points(["permutation=glob(back*)"]) == [["permutation=backwards"]]
    assert "permutation=backwards" in option_words()
    assert message("permutation=backward").startswith("there is no backward in permutation (permutation=backward): "
                                                      "did you mean backwards? choose from attention, ")  # fmt: skip


def test_a_site_and_a_folder_of_the_command_go_together(tmp_path: Path) -> None:
    own_order(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /permutation: backwards]\nseed: 5\n"
    )
    spec = compose_run_spec(["+experiment=mine"], [f"file://{tmp_path}/conf"])
    assert (spec.choices["permutation"], spec.cfg.seed, spec.cfg.runs_dir) == ("backwards", 5, "/scratch/runs")


def test_a_file_of_a_site_takes_the_place_of_the_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "site" / "model").mkdir()
    packaged = (CONF / "model" / "aim_small.yaml").read_text()
    (tmp_path / "site" / "model" / "aim_small.yaml").write_text(packaged.replace("embed_dim: 384", "embed_dim: 320"))
    spec = compose_run_spec(["model=aim_small"])
    assert (spec.cfg.model.embed_dim, spec.cfg.model.depth) == (320, 12)
    assert "model.embed_dim=320" in help_page(["--help", "model=aim_small"])


def test_a_module_beside_the_configuration_is_named(tmp_path: Path) -> None:
    site = own_order(tmp_path)
    variables = ENVIRONMENT | {"SEMAIM_SITE": str(site)}
    command = [*RUN, *SMALL, "permutation=backwards", "trainer.max_steps=1", f"runs_dir={tmp_path}/runs"]
    elsewhere = finished(command, tmp_path, variables)
    said = "error: my_backwards.Backwards cannot be imported: No module named 'my_backwards'."
    assert elsewhere.returncode == 2
    assert elsewhere.stdout.startswith(f"{said} Start in the folder of my_backwards.py, or name that folder: ")
    (tmp_path / "here" / "my_backwards.py").rename(tmp_path / "my_backwards.py")  # beside the folder `site`
    (tmp_path / "here" / "my_backwards.py").write_text("")
    beside = finished(command, tmp_path / "site", variables)
    assert beside.stdout == f"{said} It is in {tmp_path}, so begin the command with PYTHONPATH={tmp_path}\n"
    wrong = finished(command, tmp_path / "here", variables)
    assert "module 'my_backwards' has no attribute 'Backwards'\n" in wrong.stdout


@pytest.mark.slow
def test_jobs_of_the_program_find_modules_in_the_working_directory(tmp_path: Path) -> None:
    """As with python -m, whatever the site's folder holds when they start."""
    site = own_order(tmp_path)
    console = str(Path(sys.executable).with_name("semaim"))
    command = [console, "run", *SMALL, "permutation=backwards", "trainer.max_steps=1", f"runs_dir={tmp_path}/runs"]
    variables = ENVIRONMENT | {"SEMAIM_SITE": str(site)}
    for words in ([], ["-m", "hydra/launcher=submitit_local", "sweep.snapshot=true", "sweep.check=false", "seed=1"]):
        done = finished([*command, *words], tmp_path / "here", variables)
        assert done.returncode == 0, done.stdout
    found = {json.loads(path.read_text())["state"]: path for path in (tmp_path / "runs").glob("pretrain*/status.json")}
    assert [*found] == ["finished"]
    assert len(list((tmp_path / "runs").glob("pretrain*"))) == 2
    safe = finished([*command, "seed=2"], tmp_path / "here", variables | {"PYTHONSAFEPATH": "1"})
    assert "No module named 'my_backwards'" in safe.stdout, "as python -P -m semaim.run"
