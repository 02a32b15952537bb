"""Evaluations after a pretraining in the same command: `then=[knn,linprobe]`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from semaim.config.compose import choices, options
from semaim.config.naming import flatten, is_part
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.config.source_run import SourceRun, names_code, value_text
from semaim.errors import UserError

CARRIED_OPTIONS = ("device", "runs_dir")


def follow_ups(spec: RunSpec) -> list[RunSpec]:
    """The evaluations requested by `then=`, with the data, seed and tracking of the pretraining.

    Each equals the command `task=<name> checkpoint=<run folder>` with the same options of tracking and device.

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
    folder = Path(cfg.run_dir).absolute()
    source = SourceRun(folder, folder, spec.config, spec.choices, spec.folders, Path.cwd())
    shared = [f"checkpoint={value_text(cfg.run_dir)}", *_carried(spec)]
    return [
        with_parent(compose_run_spec([f"task={task}", *shared], spec.folders, source), str(folder)) for task in cfg.then
    ]


def short_recipe(spec: RunSpec, task: str, images: int) -> list[str]:
    """The option for an evaluation with few images: `recipe=short`, if its batches fit and the published ones do not.

    Args:
        spec: the evaluation, or the pretraining before it.
        task: the evaluation.
        images: number of training images.
    """
    choices = [f"data={spec.choices['data']}", f"task={task}"]
    published, short = (options([*choices, *more], spec.all_folders).trainer for more in ([], ["recipe=short"]))
    return ["recipe=short"] if published.batch_size > images >= short.batch_size else []


def with_parent(spec: RunSpec, parent: str) -> RunSpec:
    """The same run, shown in MLflow under a parent.

    Args:
        spec: the run.
        parent: folder of the parent run or sweep.
    """
    cfg = spec.cfg.copy()
    cfg.parent_run = parent
    return replace(spec, cfg=cfg)


def _carried(spec: RunSpec) -> list[str]:
    """Overrides that reproduce the tracking, recipe and device of a run; data and seed come with its checkpoint.

    The classes of its data do not: from a run folder, where these evaluations would look, they are not taken.
    """
    with_choices = options([f"{group}={spec.choices[group]}" for group in ("tracking", "data")], spec.folders)
    before, now = (flatten(OmegaConf.to_container(config)) for config in (with_choices, spec.cfg))
    changed = [
        f"{key}={value_text(value)}"
        for key, value in now.items()
        if value != before.get(key)
        and (key in CARRIED_OPTIONS or is_part(key, "tracking") or (is_part(key, "data") and names_code(key)))
    ]
    choices = []
    if with_choices.tracking != options((), spec.folders).tracking:
        choices.append(f"tracking={spec.choices['tracking']}")
    if spec.choices["recipe"] != with_choices.recipe:  # not the default of these data
        choices.append(f"recipe={spec.choices['recipe']}")
    return [*choices, *changed]
