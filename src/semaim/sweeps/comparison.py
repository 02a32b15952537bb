"""Compares what was swept, averaged over seeds: from the points of a sweep and their results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from semaim.core.comparison import Comparison, Group, compare, pooled
from semaim.core.formatting import plural
from semaim.errors import DamagedFile
from semaim.sweeps.states import PointState
from semaim.sweeps.sweep import Point, Sweep, common
from semaim.tracking.pages import tracked_page_commands

SEED = "seed"


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
    """The points of a sweep by what was swept, but for the seed, with their evaluations."""
    same = common(sweep.points)
    return pooled(
        (_options(sweep.points[index], same), _results(index, sweep, point_states)) for index in _first(sweep)
    )


def _first(sweep: Sweep) -> list[int]:
    """Indices of the points that do not evaluate another one."""
    return [index for index, point in enumerate(sweep.points) if point.after is None]


def _options(point: Point, same: set[str]) -> dict[str, str]:
    """What distinguishes a point from those that differ in more than the seed."""
    pairs = (override.lstrip("+").partition("=") for override in point.overrides if override not in same)
    return {key: value for key, _, value in pairs if key != SEED}


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
    sweep: Sweep, point_states: Sequence[PointState], by: str | None = None, brief: bool = False
) -> str:
    """The comparison for the screen, and where to look in MLflow; empty if there is nothing to compare.

    Args:
        sweep, point_states, by: as of `comparison`.
        brief: the verdict alone, for a sweep among others.
    """
    if (found := comparison(sweep, point_states, by)) is None:
        return ""
    what = progress_of(sweep, point_states)
    if brief:
        return f"{what}: {found.verdict}"
    pages: list[str] = []
    with suppress(DamagedFile):
        pages = [
            f"{purpose + ':':<11} {command}"
            for purpose, command in tracked_page_commands(sweep.folder, compare=True).items()
        ]
    return "\n".join([found.text(what), *pages])
