"""One run to be made: a command line, and the configuration that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from semaim.config.compose import composition
from semaim.config.naming import may_differ, run_name
from semaim.config.validate import check_overrides
from semaim.core.formatting import program


def _name_of_this_run(named_after: Sequence[str]) -> str:
    hydra_config = HydraConfig.get()
    return run_name(hydra_config.runtime.choices, named_after, hydra_config.overrides.task)


OmegaConf.register_new_resolver("semaim.run_name", _name_of_this_run, replace=True)


@dataclass(frozen=True)
class RunSpec:
    """One run to be made.

    Attributes:
        cfg: the configuration, for building objects.
        overrides: what the command line said; it gives the configuration, and the run its name.
        choices: the configuration's choice in each group.
        folders: configuration folders besides our own (Hydra's --config-dir).
    """

    cfg: DictConfig
    overrides: Sequence[str]
    choices: dict[str, str]
    folders: Sequence[str] = ()

    @property
    def command(self) -> str:
        """The command that makes this run, and finds it again."""
        return self.command_with(*self.overrides)

    def command_with(self, *overrides: str) -> str:
        """The command of another run with the same configuration folders, quoted for a shell."""
        folders = [word for folder in self.folders for word in ("--config-dir", folder.removeprefix("file://"))]
        return program("run", *folders, *overrides)

    @property
    def parts(self) -> dict[str, str]:
        """The task, and the choice in each group that it is made of."""
        taken = [key for key in self.cfg.task if OmegaConf.is_interpolation(self.cfg.task, key) and not may_differ(key)]
        return {"task": self.choices["task"]} | {key: self.choices[key] for key in taken if key in self.choices}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it is stored: interpolations resolved, parts that the task names in their own place.

        Raises:
            omegaconf.errors.OmegaConfBaseException: if a value is missing.
        """
        config: Any = OmegaConf.to_container(self.cfg, resolve=True, throw_on_missing=True)
        for key in self.cfg.task:
            if OmegaConf.is_interpolation(self.cfg.task, key):
                del config["task"][key]
        return config


def _resolved_name(cfg: DictConfig) -> str:
    """The run's name, which may be made of what only Hydra knows."""
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    hydra_config.set_config(cfg)
    try:
        return str(cfg.run_name)
    finally:
        hydra_config.cfg = before


def compose_run_spec(overrides: Sequence[str], folders: Sequence[str] = ()) -> RunSpec:
    """The run that a command line asks for, from any process; `semaim run` gives the same.

    Raises:
        UserError: for a mistake in the command line, naming the option.
        hydra.errors.HydraException: for one that Hydra finds (see command_line.explain).
    """
    whole = composition(overrides, folders, return_hydra_config=True)
    cfg = whole.copy()
    with open_dict(cfg):
        choices = {group: choice for group, choice in cfg.pop("hydra").runtime.choices.items() if group in cfg}
    check_overrides(overrides, cfg, folders)
    cfg.run_name = _resolved_name(whole)
    return RunSpec(cfg, overrides, choices, folders)


def run_spec_of_this_process(cfg: DictConfig) -> RunSpec:
    """The run that Hydra composed from the command line of this process.

    Raises:
        UserError: for a mistake in the command line, naming the option.
    """
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    sources = hydra_config.runtime.config_sources
    folders = [f"file://{source.path}" for source in sources if source.provider == "command-line"]
    check_overrides(overrides, cfg, folders)
    choices = {group: choice for group, choice in hydra_config.runtime.choices.items() if group in cfg}
    return RunSpec(cfg, overrides, choices, folders)
