"""Runs inside the test's own process: no imports to wait for, and objects to look at."""

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
    """The configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def job(*overrides: str) -> RunSpec:
    """What a command line asks for."""
    return compose_run_spec(overrides)


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


def run_here(folder: Path, *overrides: str) -> int:
    """Run a command inside this process; its exit code. Logging is left as it was found."""
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
