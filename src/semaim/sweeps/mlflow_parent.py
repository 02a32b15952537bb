"""The MLflow run that a sweep's points are shown under: how many are over, the best of them, and a table of all.

Like every run it has a folder (that of the sweep) and a journal, which MLflow gets a copy of.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from semaim.core.files import write_json, write_text
from semaim.core.formatting import program
from semaim.runs.journal import Journal
from semaim.runs.status import MLflowStatus
from semaim.sweeps.states import PointState, journal_tail
from semaim.sweeps.sweep import FILE, Sweep, labels, swept
from semaim.sweeps.table import write_results
from semaim.tracking.delivery import deliver, locked
from semaim.tracking.run_page import MOST_CHARACTERS, NOTE, command_block, format_number, markdown_table

FINISHED, FAILED = "sweep/finished", "sweep/failed"
BESIDE_THE_TABLE = 200  # characters left free
MOST_OTHERS = 4  # results besides the first one that the table has room for


def open_parent(sweep: Sweep, tracking: Any) -> None:
    """Make the MLflow run that the points are shown under, before any of them starts.

    Processes that meet a new store or experiment at the same time get in each other's way.

    Args:
        sweep: the sweep.
        tracking: as in the configuration (semaim.tracking.mlflow).
    """
    folder = sweep.folder
    shown = {"command": sweep.command, "points": len(sweep.points), "launcher": sweep.launcher | {"is": sweep.executor}}
    write_text(folder.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)))
    write_json(folder.path / "environment.json", {"starts": [sweep.code | {"command": sweep.command}]})
    about = {"sweep": str(len(sweep.points)), "command": sweep.command} | sweep.code
    about |= {f"swept.{key}": ", ".join(values) for key, values in swept(sweep).items()}
    journal = Journal(folder.journal)
    journal.status("RUNNING")
    journal.tags({name: str(value) for name, value in about.items() if value is not None})
    journal.tags({NOTE: description(sweep, None)})
    journal.close()
    tracking.prepare(folder)


def update_parent(sweep: Sweep, now: Sequence[PointState]) -> None:
    """Show in the MLflow run of the sweep how far it is; if it is over, also write `results.csv`."""
    if not (sweep.path / FILE).is_file():  # a run alone
        return
    over = all(state.over for state in now)
    if over:
        write_results(sweep, now)
    if not sweep.folder.journal.is_file():  # of a single point
        return
    with locked(sweep.path / ".journal.lock"):  # `semaim.sweeps.status` may look at the same time
        if not _journal_changes(sweep, now, over):
            return
    deliver(sweep.folder)


def _journal_changes(sweep: Sweep, now: Sequence[PointState], over: bool) -> bool:
    """Write what has changed since the last time; whether anything has."""
    status: MLflowStatus = "RUNNING"
    if over:
        status = "FINISHED" if all(state.word == "finished" for state in now) else "FAILED"
    tail = journal_tail(sweep.folder)
    said = [line["status"] for line in tail if "status" in line]
    known = {name: value for line in tail for name, value in line.get("metrics", {}).items()}
    found = summary(now)
    if said[-1:] == [status] and all(known.get(name) == value for name, value in found.items()):
        return False
    journal = Journal(sweep.folder.journal)
    journal.log(journal.next_step(FINISHED), found)
    if over:
        journal.artifact("results.csv")
        journal.tags({NOTE: description(sweep, now)})
    if said[-1:] != [status] or over:  # what comes after the end would leave the run without one
        journal.status(status)
    journal.close()
    return True


def summary(now: Sequence[PointState]) -> dict[str, float]:
    """How many points are over, and the best and the mean of each result; of losses the best is the lowest."""
    found: dict[str, float] = {
        FINISHED: sum(state.word == "finished" for state in now),
        FAILED: sum(state.over and state.word != "finished" for state in now),
    }
    for name in _results(now):
        values = [state.result[name] for state in now if name in state.result]
        short = name.replace("/", "_")  # so that all of them are in one group of charts
        found[f"sweep/best_{short}"] = min(values) if "loss" in name else max(values)
        found[f"sweep/mean_{short}"] = statistics.fmean(values)
    return found


def _results(now: Sequence[PointState]) -> list[str]:
    """The names of what came out: no deviations, and nothing that was measured before training."""
    names = dict.fromkeys(name for state in now for name in state.result)
    return [name for name in names if not name.endswith(("_std", "_before"))]


def description(sweep: Sweep, now: Sequence[PointState] | None) -> str:
    """The sweep in Markdown: what is swept over, its command, where it is, and once it is over what came out."""
    axes = "; ".join(f"{key} = {', '.join(f'`{value}`' for value in values)}" for key, values in swept(sweep).items())
    head = f"**Sweep** of {len(sweep.points)} runs" + (f" over {axes}" if axes else ", which are shown under it")
    rest = [
        command_block(sweep.command, sweep.cwd),
        f"* sweep folder: `{sweep.path}`\n* how far it is: `{program('status', sweep.path)}`",
        "To compare its runs by charts, choose the chart view above the table of runs, and **Group by** what is swept "
        "over. The metrics `sweep/...` of this run are over its points.",
    ]
    if now is None:
        return "\n\n".join([head, *rest])
    room = MOST_CHARACTERS - sum(map(len, (head, *rest))) - BESIDE_THE_TABLE
    return "\n\n".join([head, _table(sweep, now, room), *rest])


def _table(sweep: Sweep, now: Sequence[PointState], room: int) -> str:
    """How each point ended, as far as there is room: the first result, and the last ones, which are evaluations."""
    first, *others = _results(now) or [""]
    names = [first, *others[-MOST_OTHERS:]]
    rows = [("run", "state", *names)]
    for label, state in zip(labels(sweep), now, strict=True):
        word = state.word if state.word == "finished" else f"{state.word}: {state.detail[:100]}".replace("|", "\\|")
        rows.append((f"`{label}`", word.replace("\n", " "), *_numbers(state.result, names)))
    shown = rows
    while len(markdown_table(shown)) > room and len(shown) > 1:
        shown = shown[:-1]
    left = len(rows) - len(shown)
    return markdown_table(shown) + (f"\n\nand {left} more: see results.csv among the artifacts" if left else "")


def _numbers(result: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [format_number(result[name]) if name in result else "" for name in names]
