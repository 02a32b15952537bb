"""Runs in the test process: no import time, and objects can be inspected."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from semaim.config.compose import CONF
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.lifecycle import execute, session
from semaim.run import command_line
from support.commands import SMALL


def composed(*overrides: str) -> DictConfig:
    """Configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def job(*overrides: str) -> RunSpec:
    """RunSpec of a command line."""
    return compose_run_spec(overrides)


@contextmanager
def logging_left_as_found() -> Iterator[None]:
    """Restore logging: a run logs only to the screen, and the next test must be able to capture messages."""
    logger = logging.getLogger("semaim")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def run(folder: Path, *overrides: str) -> Path:
    """Run a minimal pretraining command line; return its run folder."""
    return go(folder, *SMALL, "run_name=run", *overrides)


def go(folder: Path, *overrides: str) -> Path:
    """Run any command line that sets its run folder; return the folder."""
    asked = job(f"runs_dir={folder}", *overrides)
    with logging_left_as_found(), session(asked.config["device"]) as (processes, stop):
        execute(asked, processes, stop)
    return Path(asked.config["run_dir"])


def run_here(folder: Path, *overrides: str) -> int:
    """Run a command in this process and return its exit code. Logging is restored."""
    GlobalHydra.instance().clear()
    try:
        with (
            logging_left_as_found(),
            contextlib.chdir(folder),
            mock.patch.object(sys, "argv", ["run.py", *overrides]),
        ):
            return command_line()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        GlobalHydra.instance().clear()
