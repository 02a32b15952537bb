"""Waits for the jobs of a sweep."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from semaim.core.formatting import duration, program
from semaim.errors import SweepFailed
from semaim.sweeps.mlflow_parent import update_parent
from semaim.sweeps.states import PointState, states
from semaim.sweeps.sweep import Sweep, labels

log = logging.getLogger(__name__)
POLL_SECONDS = (2.0, 15.0)  # initially, and after some minutes
UNANSWERED_SECONDS = 6 * 3600.0  # longer than a restart of SLURM takes
UNANSWERED = "unanswered"  # is no run folder


def wait(sweep: Sweep) -> tuple[Sweep, list[PointState]]:
    """Wait until every job has ended, and log every change of state; returns the sweep with its last jobs.

    Raises:
        SweepFailed: if SLURM has not answered for UNANSWERED_SECONDS; the jobs continue.
    """
    started = answered = time.monotonic()
    logged: dict[str, str] = {}
    while True:
        sweep = Sweep.load(sweep.path)  # `semaim retry` may have submitted points again
        point_states = states(sweep)
        update_parent(sweep, point_states)
        _log_changes(sweep, point_states, logged)
        if all(state.over for state in point_states):
            return sweep, point_states
        now = time.monotonic()
        if UNANSWERED not in logged:
            answered = now
        elif now - answered > UNANSWERED_SECONDS:
            raise SweepFailed(
                f"no longer waiting, since it has not been known for {duration(UNANSWERED_SECONDS)} how the jobs are "
                f"({logged[UNANSWERED]}); the jobs continue. To look: {program('status', sweep.path)}"
            )
        time.sleep(min(POLL_SECONDS[1], max(POLL_SECONDS[0], (now - started) / 20)))


def _log_changes(sweep: Sweep, point_states: Sequence[PointState], logged: dict[str, str]) -> None:
    """Log the states that are others than those in `logged`, and update it."""
    for label, point, state in zip(labels(sweep), sweep.points, point_states, strict=True):
        if state.name not in ("unknown", logged.get(point.run_dir)) and point.job is not None:
            logged[point.run_dir] = state.name
            detail = f"  {state.detail}" if state.detail and state.name != "running" else ""
            log.info("%s (job %s): %s%s", label, point.job, state.name, detail)
    unknown = [state.detail for state in point_states if state.name == "unknown"]
    if unknown and UNANSWERED not in logged:
        logged[UNANSWERED] = unknown[0]
        log.warning("%s; still waiting, for at most %s", unknown[0], duration(UNANSWERED_SECONDS))
    elif not unknown and logged.pop(UNANSWERED, ""):
        log.info("SLURM answers again")
