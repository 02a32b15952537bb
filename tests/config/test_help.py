"""The help of `semaim run` is complete, and names options and pages that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

import semaim
from semaim.config.compose import CONF
from support.in_process import composed
from support.paths import ROOT

SOURCE = Path(semaim.__file__).parent
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = [choice for group, choice in CHOICES if group == "experiment"]


def help_text() -> str:
    return (CONF / "hydra" / "help" / "semaim.yaml").read_text()


def help_options() -> list[tuple[str, str]]:
    """All key=value pairs of the help, except its placeholders."""
    found = re.findall(r"(?<![\w+-])([a-z_]+(?:\.[a-z_]+)*)=([^\s`]+)", help_text())
    return sorted({pair for pair in found if pair[0] not in ("group", "option")})


def test_help_lists_every_group_and_names_experiments_that_exist() -> None:
    explained = set(re.findall(r"^    (\w+)  +\w", help_text(), re.MULTILINE))
    assert {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"} <= explained
    assert len(help_options()) >= 25
    experiments = set(re.findall(r"\+experiment=([\w-]+)", help_text())) - {"name"}
    assert experiments
    assert experiments <= set(EXPERIMENTS)


@pytest.mark.parametrize(("key", "values"), help_options())
def test_option_in_the_help_exists(key: str, values: str) -> None:
    for value in re.split(r"[|,](?![^[]*\])", values):  # but not inside a list
        if key in {group for group, _ in CHOICES}:
            assert (key, value) in CHOICES
        elif "<" in value or "..." in value:
            assert key in composed()
        else:
            assert any(exists(key, value, task) for group, task in CHOICES if group == "task")


def exists(key: str, value: str, task: str) -> bool:
    """Whether a task has an option."""
    try:
        launcher = ["hydra/launcher=slurm"] if key.startswith("hydra.launcher") else []
        composed(f"task={task}", f"{key}={value}", *launcher)
    except ConfigCompositionException:
        return False
    return True


def test_pages_named_in_messages_exist() -> None:
    texts = [*SOURCE.rglob("*.py"), *CONF.rglob("*.yaml"), *(ROOT / "experiments").iterdir(), ROOT / "README.md"]
    named = {page for file in texts for page in re.findall(r"docs/[\w-]+\.md", file.read_text())}
    assert named <= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
