"""What came out of a sweep: a table for people, and `results.csv` for programs."""

from __future__ import annotations

import csv
import io
import shlex
import textwrap
from collections.abc import Sequence

from semaim.core.files import write_text
from semaim.core.formatting import program, relative_to_cwd
from semaim.sweeps.states import PointState
from semaim.sweeps.sweep import Sweep, labels

MAX_DETAIL = 200  # characters; results.csv has all


def table(sweep: Sweep, now: Sequence[PointState], numbers: Sequence[int] | None = None) -> str:
    """Some points, or all: job, state, and progress, result or last error."""
    rows = [("run", "job", "state", "result, progress or reason")]
    for number, (label, point, state) in enumerate(zip(labels(sweep), sweep.points, now, strict=True)):
        if numbers is not None and number not in numbers:
            continue
        times = f"requeued {state.restarts} time{'s' * (state.restarts > 1)}"
        word = state.word if not state.restarts else times if state.word == "requeued" else f"{state.word} ({times})"
        job = "-" if point.job is None or point.job.startswith("here") else point.job
        rows.append((label, job, word, textwrap.shorten(state.detail, MAX_DETAIL, placeholder=" ...")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {job:<{widths[1]}}  {word:<{widths[2]}}  {detail}".rstrip()
        for name, job, word, detail in rows
    )


def write_results(sweep: Sweep, now: Sequence[PointState]) -> None:
    """How every point ended, as a table for other programs."""
    names = list(dict.fromkeys(name for state in now for name in state.result))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "command line", "job", "state", "error", *names])
    for point, state in zip(sweep.points, now, strict=True):
        error = "" if state.word == "finished" else state.detail
        values = [state.result.get(name, "") for name in names]
        writer.writerow([point.name, shlex.join(point.overrides), point.job, state.word, error, *values])
    write_text(sweep.path / "results.csv", text.getvalue())


def next_commands(sweep: Sweep) -> str:
    """What to type about a sweep that goes on."""
    commands = {"watch": ("status", "--watch"), "stop": ("cancel",), "retry": ("retry", "--failed")}
    here = relative_to_cwd(sweep.path)
    return "\n".join(f"  {purpose + ':':<7} {program(*words, here)}" for purpose, words in commands.items())
