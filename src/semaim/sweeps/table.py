"""States and results of a sweep: a text table, its redrawing on a terminal, and `results.csv`."""

from __future__ import annotations

import csv
import io
import os
import shlex
import textwrap
from collections.abc import Collection, Sequence

from semaim.core.files import write_text
from semaim.core.formatting import plural, printable, program, relative_to_cwd
from semaim.core.tables import text_table
from semaim.sweeps.states import PointState
from semaim.sweeps.sweep import Sweep, labels

MAX_DETAIL = 300  # characters; results.csv has the full text


def table(sweep: Sweep, point_states: Sequence[PointState], indices: Sequence[int] | None = None) -> str:
    """A table of some points, or all: job, state, and progress, result or last error."""
    rows = [("run", "job", "state", "result, progress or reason")]
    for index, (label, point, state) in enumerate(zip(labels(sweep), sweep.points, point_states, strict=True)):
        if indices is not None and index not in indices:
            continue
        times = f"requeued {plural(state.restarts, 'time')}"
        text = state.name if not state.restarts else times if state.name == "requeued" else f"{state.name} ({times})"
        job = "-" if point.job is None or point.job.startswith("here") else point.job
        rows.append((label, job, text, textwrap.shorten(state.detail, MAX_DETAIL, placeholder=" ...")))
    return text_table(rows)


def redrawn(lines: Sequence[str], finished: Collection[str], size: os.terminal_size) -> str:
    """Lines that replace what a terminal shows, without scrolling: cut to its size, first by the finished runs."""
    height, width = max(1, size.lines - 1), max(1, size.columns - 1)
    shown = list(lines)
    if len(lines) > height:
        shown = [line for line in lines if line not in finished][: height - 1]
        shown.append(f"and {plural(len(lines) - len(shown), 'line')} that do not fit; without --watch, all are shown")
    home, clear_line, clear_below = "\x1b[H", "\x1b[K", "\x1b[J"
    return home + "\n".join(line[:width] + clear_line for line in shown) + clear_below


def write_results(sweep: Sweep, point_states: Sequence[PointState]) -> None:
    """Write `results.csv`: the final state and results of every point."""
    names = list(dict.fromkeys(name for state in point_states for name in state.result))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "command line", "job", "state", "error", *names])
    for point, state in zip(sweep.points, point_states, strict=True):
        error = "" if state.name == "finished" else state.detail
        values = [state.result.get(name, "") for name in names]
        writer.writerow([point.name, shlex.join(point.overrides), point.job, state.name, error, *values])
    file = sweep.path / "results.csv"
    if not file.is_file() or file.read_bytes() != text.getvalue().encode():  # looking needs no writing
        write_text(file, text.getvalue())


def next_commands(sweep: Sweep) -> str:
    """Commands that the user may run for an unfinished sweep."""
    commands = {"watch": ("status", "--watch"), "stop": ("cancel",), "retry": ("retry", "--failed")}
    here = relative_to_cwd(sweep.path)
    return "\n".join(f"  {purpose + ':':<7} {printable(program(*words, here))}" for purpose, words in commands.items())
