"""Specification of a run: its command-line overrides and the composed configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.config.compose import composition, folder_path, given_folders, once
from semaim.config.extension import extended
from semaim.config.naming import flatten, may_differ, run_name
from semaim.config.validate import check_overrides, with_home_folders
from semaim.core.formatting import program


def _name_of_this_run(named_after: Sequence[str]) -> str:
    hydra_config = HydraConfig.get()
    return run_name(hydra_config.runtime.choices, named_after, hydra_config.overrides.task)


OmegaConf.register_new_resolver("semaim.run_name", _name_of_this_run, replace=True)


class StoredSpec(TypedDict):
    """A run as JSON: its configuration, and the task's references to other groups, which are not in it."""

    overrides: list[str]
    choices: dict[str, str]
    folders: list[str]
    config: dict[str, Any]
    references: dict[str, str]


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run.

    Attributes:
        cfg: the configuration, for building objects.
        overrides: command-line overrides; they determine the configuration and the run's name.
        choices: the configuration's choice in each group.
        folders: additional configuration folders (Hydra's --config-dir).
    """

    cfg: DictConfig
    overrides: Sequence[str]
    choices: dict[str, str]
    folders: Sequence[str] = ()

    @property
    def command(self) -> str:
        """The command that starts or continues this run."""
        return self.command_with(*self.overrides)

    def command_with(self, *overrides: str) -> str:
        """The command of a run with other overrides and the same configuration folders, quoted for a shell."""
        folders = [word for folder in self.folders for word in ("--config-dir", str(folder_path(folder)))]
        return program("run", *folders, *overrides)

    @property
    def parts(self) -> dict[str, str]:
        """The task, and the choice in each group that it uses."""
        groups = [
            key for key in self.cfg.task if OmegaConf.is_interpolation(self.cfg.task, key) and not may_differ(key)
        ]
        return {"task": self.choices["task"]} | {key: self.choices[key] for key in groups if key in self.choices}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as stored: interpolations are resolved; the task's references to other groups are removed.

        Raises:
            omegaconf.errors.OmegaConfBaseException: if a value is missing.
        """
        config: Any = OmegaConf.to_container(self.cfg, resolve=True, throw_on_missing=True)
        for key in self._references:
            del config["task"][key]
        return config

    @property
    def _references(self) -> dict[str, str]:
        """The task's references to other groups, such as {"model": "${model}"}."""
        task: Any = OmegaConf.to_container(self.cfg.task)
        return {key: task[key] for key in task if OmegaConf.is_interpolation(self.cfg.task, key)}

    def stored(self) -> StoredSpec:
        """This run as JSON; what is composed later does not change it."""
        return {
            "overrides": list(self.overrides),
            "choices": dict(self.choices),
            "folders": list(self.folders),
            "config": self.config,
            "references": self._references,
        }

    def as_begun(self, config: dict[str, Any]) -> RunSpec:
        """The same run with a stored configuration, but with this one's options that may differ when it continues."""
        begun = OmegaConf.create(config)
        for key, value in flatten(self.config).items():
            if may_differ(key):
                OmegaConf.update(begun, key, value)
        plain: Any = OmegaConf.to_container(begun)
        return RunSpec.of({**self.stored(), "config": plain})

    @classmethod
    def of(cls, stored: StoredSpec) -> RunSpec:
        """The run that was stored."""
        cfg = OmegaConf.create(stored["config"])
        cfg.task.update(stored["references"])
        OmegaConf.set_struct(cfg, True)
        return cls(cfg, stored["overrides"], stored["choices"], stored["folders"])


def compose_run_spec(overrides: Sequence[str], folders: Sequence[str] = ()) -> RunSpec:
    """Compose the run of a command line, in any process; equal to that of `semaim run`.

    Raises:
        UserError: for a mistake in the command line; the message names the option.
        hydra.errors.HydraException: for a mistake that Hydra detects (see `semaim.config.messages.explain`).
    """
    return once(("run", *overrides, "in", *folders), lambda: _compose(overrides, folders))


def _compose(overrides: Sequence[str], folders: Sequence[str]) -> RunSpec:
    overrides, folders = extended(overrides, folders)
    cfg = composition(overrides, folders, return_hydra_config=True)
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    hydra_config.set_config(cfg)  # for the resolver of the run's name, and for ${hydra:...} in values
    try:
        with open_dict(cfg):
            choices = {group: choice for group, choice in cfg.pop("hydra").runtime.choices.items() if group in cfg}
        check_overrides(overrides, cfg, choices, folders)
        with_home_folders(cfg)
        cfg.run_name = str(cfg.run_name)
    finally:
        hydra_config.cfg = before
    return RunSpec(cfg, overrides, choices, folders)


def run_spec_of_this_process(cfg: DictConfig) -> RunSpec:
    """The run that Hydra composed from the command line of this process.

    Raises:
        UserError: for a mistake in the command line; the message names the option.
    """
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    folders = given_folders(hydra_config)
    if cfg.extend is not None:
        return compose_run_spec(overrides, folders)
    choices = {group: choice for group, choice in hydra_config.runtime.choices.items() if group in cfg}
    check_overrides(overrides, cfg, choices, folders)
    with_home_folders(cfg)
    return RunSpec(cfg, overrides, choices, folders)
