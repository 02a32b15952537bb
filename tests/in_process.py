"""Runs inside the test's own process: no imports to wait for, and objects to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from commands import SMALL
from semaim.command_line import CONF
from semaim.lifecycle import execute
from semaim.run import plain


def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def run(folder: Path, *overrides: str) -> Path:
    """Run a command line; its run folder."""
    cfg = composed(*SMALL, "run_name=run", f"runs_dir={folder}", *overrides)
    config: dict[str, Any] = plain(cfg)
    execute(cfg, config, overrides)
    return Path(config["run_dir"])
