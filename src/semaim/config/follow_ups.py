"""Runs that follow a pretraining in the same command: `then=[knn,linprobe]`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.config.compose import CONF, options
from semaim.config.naming import flatten
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.errors import UserError

CARRIED_GROUPS = ("data", "tracking")
CARRIED_OPTIONS = ("seed", "device", "runs_dir")


def follow_ups(spec: RunSpec) -> list[RunSpec]:
    """The evaluations that are to follow a pretraining, on the same data, with the same seed and tracking.

    Each is what its own command would be: `task=<name> checkpoint=<run folder>` and the options of data and tracking.

    Raises:
        UserError: if there is no such evaluation.
    """
    cfg = spec.cfg
    known = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if path.stem != "pretrain")
    if cfg.then and spec.choices["task"] != "pretrain":
        raise UserError(f"then={list(cfg.then)} is for task=pretrain: there is nothing new to evaluate after this one")
    if unknown := [task for task in cfg.then if task not in known]:
        raise UserError(f"then={list(cfg.then)}: there is no evaluation {unknown[0]}; choose from {', '.join(known)}")
    about = [f"checkpoint={value_text(cfg.run_dir)}", *_carried(spec)]
    return [
        with_parent(compose_run_spec([f"task={task}", *about], spec.folders), str(Path(cfg.run_dir).absolute()))
        for task in cfg.then
    ]


def with_parent(spec: RunSpec, parent: str) -> RunSpec:
    """The same run, shown in MLflow under another one or a sweep, whose folder this is."""
    cfg = spec.cfg.copy()
    cfg.parent_run = parent
    return RunSpec(cfg, spec.overrides, spec.choices, spec.folders)


def _carried(spec: RunSpec) -> list[str]:
    """What a command line must say to have the same data, tracking, seed and device."""
    usual = options((), spec.folders)
    chosen = [f"{group}={spec.choices[group]}" for group in CARRIED_GROUPS]
    same_choices = options(chosen, spec.folders)
    before, now = (flatten(OmegaConf.to_container(each)) for each in (same_choices, spec.cfg))
    changed = [
        f"{key}={value_text(value)}"
        for key, value in now.items()
        if value != before.get(key) and (key in CARRIED_OPTIONS or key.split(".")[0] in CARRIED_GROUPS)
    ]
    unusual = [choice for choice in chosen if usual[choice.split("=")[0]] != same_choices[choice.split("=")[0]]]
    return [*unusual, *changed]


def value_text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) else json.dumps(value)
