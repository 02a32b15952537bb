"""Runs inside the test's own process: no imports to wait for, and objects to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict

from commands import SMALL
from semaim.command_line import CONF
from semaim.lifecycle import Job, execute, session
from semaim.run import plain


def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def job(*overrides: str) -> Job:
    """What a command line asks for."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        choices = {group: choice for group, choice in cfg.pop("hydra").runtime.choices.items() if group in cfg}
    return Job(cfg, plain(cfg), overrides, choices)


@contextmanager
def logging_left_as_found() -> Iterator[None]:
    """A run sends its messages to the screen alone; afterwards they are for the next test to catch."""
    logger = logging.getLogger("semaim")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def run(folder: Path, *overrides: str) -> Path:
    """Run a pretraining command line, as small as it goes; its run folder."""
    return go(folder, *SMALL, "run_name=run", *overrides)


def go(folder: Path, *overrides: str) -> Path:
    """Run any command line that names its run; its run folder."""
    asked = job(f"runs_dir={folder}", *overrides)
    with logging_left_as_found(), session(asked.config["device"]) as (processes, stop):
        execute(asked, processes, stop)
    return Path(asked.config["run_dir"])
