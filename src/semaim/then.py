"""Runs that follow a pretraining in the same command: `then=[knn,linprobe]`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from semaim.command_line import CONF, composition, options
from semaim.errors import UserError
from semaim.runfolder import flatten, run_name

CARRIED_GROUPS = ("data", "tracking")
CARRIED_OPTIONS = ("seed", "device", "runs_dir")


@dataclass(frozen=True)
class FollowUp:
    """A run to be made after another: its configuration, the command line that gives it, and the choices in it."""

    cfg: DictConfig
    overrides: Sequence[str]
    choices: dict[str, str]


def follow_ups(cfg: DictConfig, choices: Mapping[str, str], folders: Sequence[str]) -> list[FollowUp]:
    """The evaluations that are to follow a pretraining, on the same data, with the same seed and tracking.

    Each is what its own command would be: `task=<name> checkpoint=<run folder>` and the options of data and tracking.

    Args:
        cfg: the pretraining's configuration.
        choices: its choice in each group.
        folders: configuration folders besides our own.

    Raises:
        UserError: if there is no such evaluation.
    """
    known = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if path.stem != "pretrain")
    if cfg.then and choices["task"] != "pretrain":
        raise UserError(f"then={list(cfg.then)} is for task=pretrain: there is nothing new to evaluate after this one")
    if unknown := [task for task in cfg.then if task not in known]:
        raise UserError(f"then={list(cfg.then)}: there is no evaluation {unknown[0]}; choose from {', '.join(known)}")
    carried = _carried(cfg, choices, folders)
    return [
        _follow_up(cfg, [f"task={task}", f"checkpoint={_value(cfg.run_dir)}", *carried], folders) for task in cfg.then
    ]


def _follow_up(cfg: DictConfig, overrides: list[str], folders: Sequence[str]) -> FollowUp:
    then = composition(
        [*overrides, f"parent_run={_value(str(Path(cfg.run_dir).absolute()))}"], folders, return_hydra_config=True
    )
    with open_dict(then):
        choices = {key: value for key, value in then.pop("hydra").runtime.choices.items() if key in then}
        then.run_name = run_name(choices, then.named_after, overrides)  # that of the command typed by hand
    return FollowUp(then, overrides, choices)


def _carried(cfg: DictConfig, choices: Mapping[str, str], folders: Sequence[str]) -> list[str]:
    """What a command line must say to have the same data, tracking, seed and device."""
    usual = options((), folders)
    chosen = [f"{group}={choices[group]}" for group in CARRIED_GROUPS]
    same_choices = options(chosen, folders)
    before, now = (flatten(OmegaConf.to_container(each)) for each in (same_choices, cfg))
    changed = [
        f"{key}={_value(value)}"
        for key, value in now.items()
        if value != before.get(key) and (key in CARRIED_OPTIONS or key.split(".")[0] in CARRIED_GROUPS)
    ]
    unusual = [choice for choice in chosen if usual[choice.split("=")[0]] != same_choices[choice.split("=")[0]]]
    return [*unusual, *changed]


def _value(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) else json.dumps(value)
