"""The table of runs and problems that a check prints."""

from __future__ import annotations

from dataclasses import dataclass

from semaim.core.formatting import count, plural
from semaim.core.tables import text_table
from semaim.data.image_data import ImageData
from semaim.runs.status import RunState
from semaim.tasks.task import RunCost

COLUMNS = (
    "run",
    "encoder",
    "parameters",
    "FLOP/image",
    "steps",
    "images",
    "held out",
    "classes",
    "memory/process",
    "GPU-hours",
)


@dataclass
class CheckRow:
    """A row of the table; None for unknown values.

    Attributes:
        name: of the run folder.
        state: of the run so far.
        action: what the command does with a run that is not new.
        done: number of completed steps.
        finished: whether the run is finished.
        cost, data: estimated cost, and data of the run.
    """

    name: str
    state: RunState | None = None
    action: str = ""
    done: int = 0
    finished: bool = False
    cost: RunCost | None = None
    data: ImageData | None = None

    def gpu_hours(self, tflops: float) -> float:
        """GPU-hours of the remaining steps, on GPUs that sustain `tflops` TFLOP/s."""
        if self.cost is None or self.finished:
            return 0.0
        left = 1 - min(1.0, self.done / self.cost.steps) if self.cost.steps else 1.0
        return left * self.cost.flops * self.cost.images / (tflops * 1e12) / 3600

    def cells(self, tflops: float) -> list[str]:
        """The cells of the row."""
        cells, cost = ["-"] * (len(COLUMNS) - 1), self.cost
        if cost is not None:
            cells[:3] = [count(number) for number in (cost.encoder_parameters, cost.parameters, cost.flops)]
            cells[3] = "-" if cost.steps is None else str(cost.steps)
            cells[7] = "-" if cost.memory is None else count(cost.memory, "B")
            cells[8] = hours(self.gpu_hours(tflops))
        if self.data is not None:
            splits = self.data.splits
            cells[4:7] = [str(len(part)) if part else "-" for part in (splits.train, splits.val, splits.classes)]
        return [self.name, *cells, ", ".join(filter(None, (self.state, self.action))) or "-"]


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        problems: a line for each problem: the option, and what to do.
        notes: hints for the user, likewise.
        rows: each run, and each follow-up evaluation.
        runs: number of runs without these evaluations.
        processes: number of processes of each run.
        tflops: assumed TFLOP/s of a GPU in training.
    """

    problems: list[str]
    notes: list[str]
    rows: list[CheckRow]
    runs: int
    processes: int
    tflops: float

    @property
    def table(self) -> str:
        """The runs in aligned columns: parameters, training images, an upper estimate of memory, and others."""
        rows = [[*COLUMNS, "state"], *(row.cells(self.tflops) for row in self.rows)]
        return text_table(rows, right=range(1, len(COLUMNS)))

    def __str__(self) -> str:
        spent, evaluations = hours(sum(row.gpu_hours(self.tflops) for row in self.rows)), len(self.rows) - self.runs
        summary = plural(self.runs, "run") + (f" and {plural(evaluations, 'evaluation')} after" if evaluations else "")
        summary += f", {plural(self.processes, 'process', 'es')} each, about {spent} GPU-hours"
        verdict = plural(len(self.problems), "problem") if self.problems else "OK"
        lines = [*(f"note: {note}" for note in self.notes), *(f"problem: {problem}" for problem in self.problems)]
        return "\n".join([self.table, "", *lines, f"{verdict}: {summary}"])


def hours(value: float) -> str:
    """Hours as text: 0.0, 3.2, 410."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
