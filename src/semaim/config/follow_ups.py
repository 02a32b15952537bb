"""Evaluations after a pretraining in the same command: `then=[knn,linprobe]`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.config.compose import choices, options
from semaim.config.naming import flatten
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.errors import UserError

CARRIED_GROUPS = ("data", "tracking")
CARRIED_OPTIONS = ("seed", "device", "runs_dir")


def follow_ups(spec: RunSpec) -> list[RunSpec]:
    """The evaluations requested by `then=`, with the data, seed and tracking of the pretraining.

    Each equals the command `task=<name> checkpoint=<run folder>` with the same options of data and tracking.

    Raises:
        UserError: if a requested evaluation does not exist.
    """
    cfg = spec.cfg
    known = [task for task in choices("task", spec.folders) if task != "pretrain"]
    if cfg.then and spec.choices["task"] != "pretrain":
        raise UserError(f"then={list(cfg.then)} is for task=pretrain: there is nothing new to evaluate after this one")
    if unknown := [task for task in cfg.then if task not in known]:
        raise UserError(f"then={list(cfg.then)}: there is no evaluation {unknown[0]}; choose from {', '.join(known)}")
    if not cfg.then:
        return []
    shared = [f"checkpoint={value_text(cfg.run_dir)}", *_carried(spec)]
    return [
        with_parent(compose_run_spec([f"task={task}", *shared], spec.folders), str(Path(cfg.run_dir).absolute()))
        for task in cfg.then
    ]


def with_parent(spec: RunSpec, parent: str) -> RunSpec:
    """The same run, shown in MLflow under a parent.

    Args:
        spec: the run.
        parent: folder of the parent run or sweep.
    """
    cfg = spec.cfg.copy()
    cfg.parent_run = parent
    return RunSpec(cfg, spec.overrides, spec.choices, spec.folders)


def _carried(spec: RunSpec) -> list[str]:
    """Overrides that reproduce the data, tracking, seed and device of a run."""
    defaults = options((), spec.folders)
    choices = {group: f"{group}={spec.choices[group]}" for group in CARRIED_GROUPS}
    with_choices = options(list(choices.values()), spec.folders)
    before, now = (flatten(OmegaConf.to_container(config)) for config in (with_choices, spec.cfg))
    changed = [
        f"{key}={value_text(value)}"
        for key, value in now.items()
        if value != before.get(key) and (key in CARRIED_OPTIONS or key.split(".")[0] in CARRIED_GROUPS)
    ]
    changed_choices = [choice for group, choice in choices.items() if defaults[group] != with_choices[group]]
    if spec.choices["recipe"] != with_choices.recipe:  # not the default of these data
        changed_choices.append(f"recipe={spec.choices['recipe']}")
    return [*changed_choices, *changed]


def value_text(value: Any) -> str:
    """A value in command-line syntax."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) else json.dumps(value)
