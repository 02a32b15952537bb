"""The MLflow parent run of a sweep: numbers of finished and failed points, best results, and a table of all points.

Like every run it has a folder (that of the sweep) and a journal, of which MLflow receives a copy.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from semaim.core.files import if_possible, writable, write_json, write_text
from semaim.core.formatting import plural, program
from semaim.core.locks import one_at_a_time
from semaim.core.tables import markdown_table
from semaim.runs.journal import Journal
from semaim.runs.provenance import code_version
from semaim.runs.status import MLflowStatus
from semaim.sweeps.states import PointState, journal_tail
from semaim.sweeps.sweep import FILE, Sweep, labels, swept
from semaim.sweeps.table import write_results
from semaim.tracking.delivery import deliver
from semaim.tracking.run_page import MAX_TAG_CHARACTERS, NOTE, command_block

FINISHED, FAILED = "sweep/finished", "sweep/failed"
RESERVED_CHARACTERS = 200  # kept free in the description
MAX_OTHER_RESULTS = 4  # columns of the table besides the first result


def open_parent(sweep: Sweep, tracking: Any) -> None:
    """Create the parent run before any point starts.

    It also creates a new store or experiment, which several processes at a time cannot do.

    Args:
        sweep: the sweep.
        tracking: as in the configuration (semaim.tracking.mlflow).
    """
    folder = sweep.folder
    shown = {"command": sweep.command, "points": len(sweep.points), "launcher": sweep.launcher | {"is": sweep.executor}}
    write_text(folder.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)))
    code = code_version()
    write_json(folder.path / "environment.json", {"starts": [code | {"command": sweep.command}]})
    tags = {"sweep": str(len(sweep.points)), "command": sweep.command}
    tags |= {"commit": str(code["commit"]), "dirty": str(code["dirty"])} if code["commit"] else {}
    tags |= {f"swept.{key}": ", ".join(values) for key, values in swept(sweep).items()}
    journal = Journal(folder.journal)
    journal.status("RUNNING")
    journal.tags({name: str(value) for name, value in tags.items() if value is not None})
    journal.tags({NOTE: description(sweep, None)})
    journal.close()
    tracking.prepare(folder)


def update_parent(sweep: Sweep, point_states: Sequence[PointState]) -> None:
    """Update the parent run with the states of the points; at the end of the sweep, also write `results.csv`.

    On a full disk this is a warning; in the folder of another user, and while a state is unknown, nothing is written.
    """
    if not (sweep.path / FILE).is_file() or not writable(sweep.path):  # a single run
        return
    if any(state.name == "unknown" for state in point_states):
        return
    with if_possible():
        _write_update(sweep, point_states)


def _write_update(sweep: Sweep, point_states: Sequence[PointState]) -> None:
    over = all(state.over for state in point_states)
    if over:
        write_results(sweep, point_states)
    if not sweep.folder.journal.is_file():  # of a single point
        return
    with one_at_a_time(sweep.path / ".journal.lock", "writing of a summary"):  # `semaim status` does so, too
        if not _journal_changes(sweep, point_states, over):
            return
    deliver(sweep.folder)


def _journal_changes(sweep: Sweep, point_states: Sequence[PointState], over: bool) -> bool:
    """Write changes since the last update to the journal; returns whether there were any."""
    status: MLflowStatus = "RUNNING"
    if over:
        status = "FINISHED" if all(state.name == "finished" for state in point_states) else "FAILED"
    tail = journal_tail(sweep.folder)
    statuses = [line["status"] for line in tail if "status" in line]
    last_values = {name: value for line in tail for name, value in line.get("metrics", {}).items()}
    values = summary(point_states)
    if statuses[-1:] == [status] and all(last_values.get(name) == value for name, value in values.items()):
        return False
    journal = Journal(sweep.folder.journal)
    journal.log(journal.next_step(FINISHED), values)
    if over:
        journal.artifact("results.csv")
        journal.tags({NOTE: description(sweep, point_states)})
    if statuses[-1:] != [status] or over:  # lines after the last status reopen the run
        journal.status(status)
    journal.close()
    return True


def summary(point_states: Sequence[PointState]) -> dict[str, float]:
    """Numbers of finished and failed points, and best and mean of each result; the best loss is the lowest."""
    metrics: dict[str, float] = {
        FINISHED: sum(state.name == "finished" for state in point_states),
        FAILED: sum(state.unsuccessful for state in point_states),
    }
    for name in _results(point_states):
        if name.endswith(("_top5", "_loss")):  # beside an accuracy, which is enough for an overview
            continue
        values = [state.result[name] for state in point_states if name in state.result]
        short = name.replace("/", "_")  # puts all of them in one group of charts
        metrics[f"sweep/best_{short}"] = min(values) if "loss" in name else max(values)
        metrics[f"sweep/mean_{short}"] = statistics.fmean(values)
    return metrics


def _results(point_states: Sequence[PointState]) -> list[str]:
    """Names of results, without deviations and values from before training."""
    names = dict.fromkeys(name for state in point_states for name in state.result)
    return [name for name in names if not name.endswith(("_std", "_before"))]


def description(sweep: Sweep, point_states: Sequence[PointState] | None) -> str:
    """The sweep in Markdown: swept options, command, folder and, at the end, results."""
    axes = "; ".join(f"{key} = {', '.join(f'`{value}`' for value in values)}" for key, values in swept(sweep).items())
    head = f"**Sweep** of {plural(len(sweep.points), 'run')}" + (
        f" over {axes}" if axes else ", which are shown under it"
    )
    sections = [
        command_block(sweep.command, sweep.cwd),
        f"* sweep folder: `{sweep.path}`\n* its state: `{program('status', sweep.path)}`",
        "To compare its runs by charts, choose the chart view above the table of runs, and **Group by** a swept "
        "option. The metrics `sweep/...` of this run are over its points.",
    ]
    if point_states is None:
        return "\n\n".join([head, *sections])
    max_characters = MAX_TAG_CHARACTERS - sum(map(len, (head, *sections))) - RESERVED_CHARACTERS
    return "\n\n".join([head, _table(sweep, point_states, max_characters), *sections])


def _table(sweep: Sweep, point_states: Sequence[PointState], max_characters: int) -> str:
    """State and results of each point, within a length: the first result, and the last ones, which are evaluations."""
    first, *others = _results(point_states) or [""]
    names = [first, *others[-MAX_OTHER_RESULTS:]]
    rows = [("run", "state", *names)]
    for label, state in zip(labels(sweep), point_states, strict=True):
        outcome = state.name if state.name == "finished" else f"{state.name}: {state.detail[:100]}"
        cells = (f"{state.result[name]:.4g}" if name in state.result else "" for name in names)
        rows.append((f"`{label}`", outcome, *cells))
    shown = rows
    while len(markdown_table(shown)) > max_characters and len(shown) > 1:
        shown = shown[:-1]
    omitted = len(rows) - len(shown)
    return markdown_table(shown) + (f"\n\nand {omitted} more: see results.csv among the artifacts" if omitted else "")
