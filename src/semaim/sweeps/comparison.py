"""Compares what was swept, averaged over seeds: from the points of a sweep and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from semaim.config.naming import flatten, may_differ
from semaim.core.comparison import METHOD, Comparison, Group, compare, pooled
from semaim.core.formatting import plural
from semaim.errors import DamagedFile
from semaim.runs.folder import RunFolder
from semaim.sweeps.states import PointState
from semaim.sweeps.sweep import Point, Sweep, common
from semaim.tracking.pages import tracked_page_commands

SEED, CHECKPOINT, TASK = "seed", "checkpoint", "task"


def comparison(sweep: Sweep, point_states: Sequence[PointState], by: str | None = None) -> Comparison | None:
    """The points of a sweep by what was swept, the best first; None if fewer than two have results.

    Args:
        sweep: the sweep.
        point_states: the state of each point.
        by: the metric to compare by, see `compare`.

    Raises:
        UserError: if no point has this metric.
    """
    if sum(bool(_results(index, sweep, point_states)) for index in _first(sweep)) < 2:
        return None
    return compare(groups(sweep, point_states), by)


def groups(sweep: Sweep, point_states: Sequence[PointState]) -> list[Group]:
    """The points of a sweep by what was swept, but for the seed, with their evaluations, and methods if they differ."""
    same, encoders = common(sweep.points), _encoders(sweep)
    left_out = {SEED, TASK} if _tasks_are_columns(sweep, point_states) else {SEED}
    options = {index: _options(sweep.points[index], same, left_out, encoders) for index in _first(sweep)}
    found = pooled((each, _results(index, sweep, point_states)) for index, each in options.items())
    methods = {tuple(each.items()): method for index, each in options.items() if (method := _method(index, sweep))}
    if len(set(methods.values())) < 2:
        return found
    return [
        replace(group, options={**group.options, METHOD: methods.get(tuple(group.options.items()), "")})
        for group in found
    ]


def _method(index: int, sweep: Sweep) -> str:
    """The method of a pretraining, or of the one that a point evaluates; empty if it is not recorded."""
    point = sweep.points[index]
    given = [override.partition("=")[2] for override in point.overrides if override.startswith(f"{CHECKPOINT}=")]
    folders = [point.folder, *(RunFolder(Path(sweep.cwd, Path(value).expanduser())) for value in given)]
    with suppress(DamagedFile):
        return next((method for folder in folders if (method := folder.last_start().get("method"))), "")
    return ""


def _tasks_are_columns(sweep: Sweep, point_states: Sequence[PointState]) -> bool:
    """Whether all points evaluate checkpoints, and no two tasks measure the same: then each has columns of its own."""
    metrics: dict[str, set[str]] = {}
    for point, state in zip(sweep.points, point_states, strict=True):
        given = dict(override.split("=", 1) for override in point.overrides if "=" in override)
        if CHECKPOINT not in given:
            return False
        metrics.setdefault(given.get(TASK, ""), set()).update(state.measured)
    return sum(map(len, metrics.values())) == len(set().union(*metrics.values()))


def _first(sweep: Sweep) -> list[int]:
    """Indices of the points that do not evaluate another one."""
    return [index for index, point in enumerate(sweep.points) if point.after is None]


def _options(
    point: Point, same: set[str], left_out: set[str], encoders: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """What distinguishes a point from others, but for the options left out, of the pretraining or its own."""
    options: dict[str, str] = {}
    for override in point.overrides:
        key, _, value = override.lstrip("+").partition("=")
        if override not in same and key not in left_out:
            options |= encoders.get(value, {key: value}) if key == CHECKPOINT else {key: value}
    return options


def _encoders(sweep: Sweep) -> dict[str, dict[str, str]]:
    """By checkpoint, what distinguishes pretrainings that a sweep evaluates; empty if not all are other run folders."""
    given = [override.partition("=") for point in sweep.points for override in point.overrides]
    values = list(dict.fromkeys(value for key, _, value in given if key == CHECKPOINT))
    try:
        configs = [_pretraining(RunFolder(Path(sweep.cwd, Path(value).expanduser()))) for value in values]
    except DamagedFile:
        return {}
    if not all(configs):
        return {}
    keys = [key for key in dict.fromkeys(key for each in configs for key in each) if key != SEED]
    differing = [key for key in keys if len({each.get(key) for each in configs}) > 1]
    # a choice stands for its group
    shown = [key for key in differing if "." not in key or key.partition(".")[0] not in differing]
    # with data= all are evaluated on the same data, whatever they were pretrained on
    given_data = any(override.startswith("data=") for override in common(sweep.points))
    names = {key: f"pretrained.{key}" if given_data and key.startswith("data") else key for key in shown}
    return {
        value: {name: each.get(key, "") for key, name in names.items()}
        for value, each in zip(values, configs, strict=True)
    }


def _pretraining(folder: RunFolder) -> dict[str, str]:
    """The choices and options of a pretraining that affect its result; empty if it is no run folder."""
    if not (folder.path / "config.yaml").is_file():
        return {}
    options = {key: str(value) for key, value in flatten(folder.config()).items() if not may_differ(key)}
    kept = {key: value for key, value in options.items() if not key.startswith(("task.", "named_after"))}
    return dict(folder.last_start().get("choices", {})) | kept


def _results(index: int, sweep: Sweep, point_states: Sequence[PointState]) -> dict[str, float]:
    """The metrics of a point, and of the points that evaluate it."""
    found: dict[str, float] = {}
    for position, (point, state) in enumerate(zip(sweep.points, point_states, strict=True)):
        if index in (position, point.after):
            found |= state.measured
    return found


def progress_of(sweep: Sweep, point_states: Sequence[PointState]) -> str:
    """What a comparison is of: "6 runs", or "4 of 6 runs"."""
    finished = sum(state.name == "finished" for state in point_states)
    of = "" if finished == len(sweep.points) else f"{finished} of "
    return f"{of}{plural(len(sweep.points), 'run')}"


def comparison_text(
    sweep: Sweep,
    point_states: Sequence[PointState],
    by: str | None = None,
    brief: bool = False,
    pages: Mapping[str, str] | None = None,
) -> str:
    """The comparison for the screen, and where to look at it; empty if there is nothing to compare.

    Args:
        sweep, point_states, by: as of `comparison`.
        brief: in a line, for a sweep among others.
        pages: commands that show the runs, by purpose; None for those of the MLflow store that the sweep was sent to.
    """
    if (found := comparison(sweep, point_states, by)) is None:
        return ""
    what = progress_of(sweep, point_states)
    if brief:
        return f"{what}: {found.brief}"
    with suppress(DamagedFile):
        pages = tracked_page_commands(sweep.folder, compare=True) if pages is None else pages
    shown = [f"{purpose + ':':<11} {command}" for purpose, command in (pages or {}).items()]
    return "\n".join([found.text(what), *shown])
