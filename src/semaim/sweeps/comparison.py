"""Compares what was swept, averaged over seeds: from the points of a sweep and their results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from semaim.core.comparison import Comparison, compare, pooled
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
    same = common(sweep.points)
    runs = [
        (_options(point, same), _results(index, sweep, point_states))
        for index, point in enumerate(sweep.points)
        if point.after is None
    ]
    return compare(pooled(runs), by) if sum(bool(results) for _, results in runs) > 1 else None


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
    """How much of a sweep a comparison is of; empty if all is finished."""
    finished = sum(state.name == "finished" for state in point_states)
    return "" if finished == len(sweep.points) else f"so far, {finished} of {plural(len(sweep.points), 'run')}: "


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
    so_far = progress_of(sweep, point_states)
    if brief:
        return so_far + found.verdict
    pages: list[str] = []
    with suppress(DamagedFile):
        pages = [f"{purpose + ':':<11} {command}" for purpose, command in tracked_page_commands(sweep.folder).items()]
    return "\n".join([so_far + found.text, *pages])
