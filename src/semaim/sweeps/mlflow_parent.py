"""The MLflow parent run of a sweep: numbers of finished and failed points, and the comparison of what was swept.

Like every run it has a folder (that of the sweep) and a journal, of which MLflow receives a copy.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf

from semaim.config.naming import other_overrides
from semaim.core.comparison import METHOD, Comparison
from semaim.core.files import if_possible, writable, write_json, write_text
from semaim.core.formatting import plural, program
from semaim.core.headline import LOSS, SECONDARY, digits, headlines, lower_is_better
from semaim.core.locks import one_at_a_time
from semaim.core.tables import limited_markdown_table
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal, View
from semaim.runs.provenance import code_version, user
from semaim.runs.status import MLflowStatus
from semaim.sweeps.comparison import comparison, groups, progress_of
from semaim.sweeps.states import PointState, journal_tail
from semaim.sweeps.sweep import FILE, Sweep, common, labels, swept
from semaim.sweeps.table import write_results
from semaim.tracking.delivery import deliver
from semaim.tracking.run_names import affects_model, sweep_name
from semaim.tracking.run_page import MAX_TAG_CHARACTERS, NOTE, command_block, source_tags

FINISHED, FAILED = "sweep/finished", "sweep/failed"
RESERVED_CHARACTERS = 200  # kept free in the description


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
    spec = sweep.runs(sweep.points[0])[0]
    start: dict[str, Any] = {**code, "user": user(), "command": sweep.command, "title": title(sweep, spec.choices)}
    start |= {"swept": swept_keys(sweep), "choices": spec.parts}
    write_json(folder.path / "environment.json", {"starts": [start]})
    tags = {"sweep": str(len(sweep.points)), "command": sweep.command}
    tags |= {"commit": str(code["commit"]), "dirty": str(code["dirty"])} if code["commit"] else {}
    tags |= {f"swept.{key}": ", ".join(values) for key, values in swept(sweep).items()}
    tags |= source_tags(start, "semaim run -m")
    journal = Journal(folder.journal)
    journal.status("RUNNING")
    journal.tags({name: str(value) for name, value in tags.items() if value is not None})
    journal.tags({NOTE: description(sweep, None)})
    journal.view(view(sweep, []))
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
    values = summary(sweep, point_states)
    if statuses[-1:] == [status] and all(last_values.get(name) == value for name, value in values.items()):
        return False
    journal = Journal(sweep.folder.journal)
    journal.log(journal.next_step(FINISHED), values)
    compared = comparison(sweep, point_states)
    if over or compared is not None:
        verdict = "" if compared is None else f"{progress_of(sweep, point_states)}: {compared.brief}"
        journal.tags({NOTE: description(sweep, point_states, compared), "verdict": verdict})
    if over:
        journal.artifact("results.csv")
        journal.view(view(sweep, point_states, compared))
    if statuses[-1:] != [status] or over:  # lines after the last status reopen the run
        journal.status(status)
    journal.close()
    return True


def title(sweep: Sweep, choices: Mapping[str, str]) -> str:
    """The name of the sweep in MLflow.

    Args:
        sweep: the sweep.
        choices: the choice in each group, of its first run.
    """
    if not (keys := swept_keys(sweep)):
        return sweep.path.name
    same = [each for each in other_overrides((), sweep.points[0].overrides) if each in common(sweep.points)]
    if choices["task"] == "pretrain":
        same = [each for each in same if affects_model(each)]
    options = dict(each.split("=", 1) for each in same if "=" in each)
    count = sum(point.after is None for point in sweep.points)
    return sweep_name(keys, count, options, choices)


def swept_keys(sweep: Sweep) -> list[str]:
    """The swept options."""
    return [key.lstrip("+") for key in swept(sweep)]


def view(sweep: Sweep, point_states: Sequence[PointState], compared: Comparison | None = None) -> View:
    """How MLflow shows its runs: best ones first, grouped by what is swept besides the seed if there are several seeds.

    Args:
        sweep: the sweep.
        point_states: states of its points; empty at its start.
        compared: the comparison of the results, if there is one.
    """
    start = sweep.folder.last_start()
    # The choices of method= and size= are known by the tags of what they chose.
    keys = ["model" if key == "size" else key for key in start.get("swept", [])]
    modes = [["tag" if key in start.get("choices", {}) or key == METHOD else "param", key] for key in keys]
    differ = compared is not None and any(METHOD in group.options for group in compared.groups)
    shown = [*modes, ["tag", METHOD]] if differ and METHOD not in keys else modes
    return {
        "name": start.get("title", sweep.path.name),
        "groups": [each for each in modes if each[1] != "seed"] if ["param", "seed"] in modes else [],
        "columns": [f"{mode}s.`{key}`" for mode, key in shown],
        "metrics": compared.metrics if compared else headlines(name for each in point_states for name in each.measured),
        "runs": _shared_runs(sweep) if point_states else [],
    }


def _shared_runs(sweep: Sweep) -> list[str]:
    """Folders of its runs, if some are shown under an earlier sweep or run, where they stay; else none."""
    points = [point.folder for point in sweep.points if point.after is None]
    with suppress(UserError):  # a damaged file
        if not all(_is_shown_under(folder, sweep) for folder in points):
            return [str(folder.path) for folder in points]
    return []


def _is_shown_under(folder: RunFolder, sweep: Sweep) -> bool:
    parent = folder.config().get("parent_run")
    return parent is not None and os.path.realpath(parent) == os.path.realpath(sweep.path)


def summary(sweep: Sweep, point_states: Sequence[PointState]) -> dict[str, float]:
    """Numbers of finished and failed points, and of each metric the best mean over seeds and the mean of all points."""
    metrics: dict[str, float] = {
        FINISHED: sum(state.name == "finished" for state in point_states),
        FAILED: sum(state.unsuccessful for state in point_states),
    }
    compared = groups(sweep, point_states)
    for name in dict.fromkeys(name for group in compared for name in group.scores):
        if SECONDARY.fullmatch(name) and name != LOSS:  # beside an accuracy, which is enough for an overview
            continue
        scores = [group.scores[name] for group in compared if name in group.scores]
        short = name.removeprefix("eval/").removeprefix("train/").replace("/", "_")  # in one group of charts
        best = min if lower_is_better(name) else max
        metrics[f"sweep/best_{short}"] = best(score.mean for score in scores)
        values = [score.mean for score in scores for _ in range(score.runs)]
        metrics[f"sweep/mean_{short}"] = statistics.fmean(values)
    return metrics


def description(sweep: Sweep, point_states: Sequence[PointState] | None, compared: Comparison | None = None) -> str:
    """The sweep in Markdown: swept options, the comparison of the results so far, command, folder.

    At the end of a sweep of which some runs did not finish, or without a comparison, the state of each run is added.
    """
    axes = "; ".join(f"{key} = {', '.join(f'`{value}`' for value in values)}" for key, values in swept(sweep).items())
    of = plural(len(sweep.points), "run")
    head = [f"**Sweep** of {of}" + (f" over {axes}" if axes else ", which are shown under it")]
    sections = [
        command_block(sweep.command, sweep.cwd),
        f"* sweep folder: `{sweep.path}`\n* its state: `{program('status', sweep.path)}`",
        "To compare its runs by charts, choose the chart view above the table of runs, and **Group by** a swept "
        "option. The metrics `sweep/...` of this run are over its points.",
    ]
    if point_states is None:
        return "\n\n".join([*head, *sections])
    if compared is not None:
        max_characters = (MAX_TAG_CHARACTERS - sum(map(len, (*head, *sections)))) / 2  # half of it for the states
        head.append(compared.markdown(progress_of(sweep, point_states), max_characters - len(compared.verdict)))
    all_finished = all(state.name == "finished" for state in point_states)
    if all(state.over for state in point_states) and not (compared and all_finished):
        max_characters = MAX_TAG_CHARACTERS - sum(map(len, (*head, *sections))) - RESERVED_CHARACTERS
        head.append(_table(sweep, point_states, max_characters))
    return "\n\n".join([*head, *sections])


def _table(sweep: Sweep, point_states: Sequence[PointState], max_characters: int) -> str:
    """State and headline metrics of each point, within a length."""
    names = headlines(name for state in point_states for name in state.measured)
    rows = [("run", "state", *names)]
    for label, state in zip(labels(sweep), point_states, strict=True):
        outcome = state.name if state.name == "finished" else f"{state.name}: {state.detail[:100]}"
        cells = (digits(name, state.measured[name]) if name in state.measured else "" for name in names)
        rows.append((f"`{label}`", outcome, *cells))
    return limited_markdown_table(rows, max_characters)
