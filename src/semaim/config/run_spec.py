"""Specification of a run: its command-line overrides and the composed configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NotRequired

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.config.checkpoint_data import CommandLine, Inherited, completed
from semaim.config.compose import composition, folder_path, given_folders, once, searched_folders
from semaim.config.extension import extended
from semaim.config.naming import flatten, may_differ, run_name
from semaim.config.source_run import SourceRun
from semaim.config.validate import check_overrides, with_home_folders
from semaim.core.formatting import program


def _name_of_this_run(named_after: Sequence[str]) -> str:
    hydra_config = HydraConfig.get()
    typed = completed(hydra_config.overrides.task, searched_folders(hydra_config))
    return run_name(hydra_config.runtime.choices, named_after, typed.overrides, typed.checkpoint)


OWN_NAME = "${semaim.run_name:${named_after}}"  # in conf/config.yaml
OmegaConf.register_new_resolver("semaim.run_name", _name_of_this_run, replace=True)


class StoredSpec(TypedDict):
    """A run as JSON: its configuration, and the task's references to other groups, which are not in it."""

    overrides: list[str]
    choices: dict[str, str]
    folders: list[str]
    config: dict[str, Any]
    references: dict[str, str]
    inherited: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run.

    Attributes:
        cfg: the configuration, for building objects.
        overrides: command-line overrides; with what is inherited, they determine the configuration and the run's name.
        choices: the configuration's choice in each group.
        folders: additional configuration folders (Hydra's --config-dir).
        inherited: what an evaluation takes from the run that made its checkpoint.
    """

    cfg: DictConfig
    overrides: Sequence[str]
    choices: dict[str, str]
    folders: Sequence[str] = ()
    inherited: Inherited | None = None

    @property
    def all_folders(self) -> list[str]:
        """The additional configuration folders, with those that are inherited."""
        return [*self.folders, *(self.inherited.folders if self.inherited else ())]

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
            "inherited": None if self.inherited is None else asdict(self.inherited),
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
        inherited = stored.get("inherited")
        return cls(
            cfg,
            stored["overrides"],
            stored["choices"],
            stored["folders"],
            None if inherited is None else Inherited(**inherited),
        )


def compose_run_spec(overrides: Sequence[str], folders: Sequence[str] = (), source: SourceRun | None = None) -> RunSpec:
    """Compose the run of a command line, in any process; equal to that of `semaim run`.

    Args:
        overrides: the command line.
        folders: additional configuration folders.
        source: the run that makes the checkpoint of this evaluation, if it may have no run folder yet.

    Raises:
        UserError: for a mistake in the command line; the message names the option.
        hydra.errors.HydraException: for a mistake that Hydra detects (see `semaim.config.messages.explain`).
    """
    return once(("run", *overrides, "in", *folders), lambda: _compose(completed(*extended(overrides, folders), source)))


def _compose(typed: CommandLine) -> RunSpec:
    cfg = composition(typed.all_overrides, typed.all_folders, return_hydra_config=True)
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    hydra_config.set_config(cfg)  # for ${hydra:...} in values
    try:
        with open_dict(cfg):
            choices = {group: choice for group, choice in cfg.pop("hydra").runtime.choices.items() if group in cfg}
        return _checked(cfg, typed, choices)
    finally:
        hydra_config.cfg = before


def run_spec_of_this_process(cfg: DictConfig) -> RunSpec:
    """The run that Hydra composed from the command line of this process, which `all_words` has completed.

    Raises:
        UserError: for a mistake in the command line; the message names the option.
    """
    hydra_config = HydraConfig.get()
    if cfg.extend is not None:
        return compose_run_spec(list(hydra_config.overrides.task), given_folders(hydra_config))
    choices = {group: choice for group, choice in hydra_config.runtime.choices.items() if group in cfg}
    return _checked(cfg, completed(hydra_config.overrides.task, given_folders(hydra_config)), choices)


def _checked(cfg: DictConfig, typed: CommandLine, choices: dict[str, str]) -> RunSpec:
    """The run of a composed configuration, which is checked."""
    check_overrides(typed.all_overrides, cfg, choices, typed.all_folders)
    with_home_folders(cfg)
    if cfg.trainer.get("flops") is not None:
        cfg.trainer.epochs = None  # of a file, such as that of an experiment; typed together they are refused
    if OmegaConf.to_container(cfg)["run_name"] == OWN_NAME:  # type: ignore[index,call-overload]
        cfg.run_name = run_name(choices, cfg.named_after, typed.overrides, typed.checkpoint)
    cfg.run_name = str(cfg.run_name)
    return RunSpec(cfg, typed.overrides, choices, typed.folders, typed.inherited)
