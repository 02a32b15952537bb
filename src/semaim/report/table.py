"""Content and format of the report: rows and accuracies, Markdown tables, CSV lines, plots."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from semaim.core.files import atomic
from semaim.core.tables import markdown_table

MAX_KNN_COLUMNS = 4  # of a Markdown table; with more numbers of neighbours, it shows one of them
DEFAULT_K = 20
PROTOCOLS = {"knn": "k-NN", "linprobe": "linear probe", "finetune": "fine-tune"}
PROCESSORS = {"cpu": " (CPU)", "cuda": " (GPU)"}
CSV_COLUMNS = (
    "method", "model", "permutation", "target", "pretrained_on", "epochs", "images_seen", "device_hours", "device",
    "evaluated_on", "evaluation", "mean", "deviation", "runs", "published", "source",
)  # fmt: skip
# Okabe and Ito's colours, distinguishable with any colour vision, without yellow, which is faint on white. Seven
# colours and eight markers have no common factor: 56 methods look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS_PER_ROW = 3


class Evaluation(NamedTuple):
    """A kind of accuracy, a column of the table; columns sort by these fields.

    Attributes:
        shots: labelled images per class; 0 for all.
        protocol: index in PROTOCOLS.
        k: neighbours, or 0.
        variant: "cls" or "mean" (which features); of fine-tuning "" (last epoch), "best" or "ema".
        name: the metric, without "eval/".
    """

    shots: int
    protocol: int
    k: int
    variant: str
    name: str

    @property
    def title(self) -> str:
        """Title of the column."""
        words = [f"{self.shots}-shot" if self.shots else "", list(PROTOCOLS.values())[self.protocol]]
        return " ".join(filter(None, [*words, str(self.k or ""), self.variant]))


class Method(NamedTuple):
    """The method of a row; runs that agree in all fields are pooled."""

    name: str
    model: str
    permutation: str
    target: str
    pretrained_on: str
    epochs: float | None
    evaluated_on: str


class Accuracy(NamedTuple):
    """An accuracy in percent: mean, deviation if there is one, number of runs, or source of a published result."""

    mean: float
    deviation: float | None
    runs: int | None
    source: str


@dataclass(frozen=True)
class TableRow:
    """A method and its accuracies.

    Attributes:
        method: the method.
        images_seen: in pretraining, a mean over runs.
        device_hours: of pretraining, likewise; None if some runs were on a CPU and others on GPUs.
        device: "cpu", "cuda", both, or "" if not known.
        accuracies: by evaluation.
        published: whether the accuracies are published ones.
    """

    method: Method
    images_seen: float | None
    device_hours: float | None
    device: str
    accuracies: Mapping[Evaluation, Accuracy]
    published: bool


def columns(rows: Iterable[TableRow], few_shot: bool) -> list[Evaluation]:
    """The columns of a Markdown table: all evaluations, but a single k if there are too many numbers of neighbours.

    It is the k that most rows have; of equals, DEFAULT_K or else the smallest.
    """
    rows_by_evaluation = Counter(what for row in rows for what in row.accuracies if bool(what.shots) == few_shot)
    rows_by_k: Counter[int] = Counter()
    for what, count in rows_by_evaluation.items():
        rows_by_k[what.k] += count if what.k else 0
    if sum(bool(what.k) for what in rows_by_evaluation) <= MAX_KNN_COLUMNS:
        return sorted(rows_by_evaluation)
    shown = min(filter(None, rows_by_k), key=lambda k: (-rows_by_k[k], k != DEFAULT_K, k))
    return sorted(what for what in rows_by_evaluation if what.k in (0, shown))


def markdown(rows: Sequence[TableRow], selection: str) -> str:
    """The report in Markdown.

    Args:
        rows: in the order of the table.
        selection: description of the selected evaluations.
    """
    full_data, few = columns(rows, few_shot=False), columns(rows, few_shot=True)
    parts = ["# Methods and evaluations", f"Accuracy in percent, from {selection}."]
    if full_data:
        parts.append(table([row for row in rows if any(not what.shots for what in row.accuracies)], full_data))
    if few:
        parts += ["## Few labels", table([row for row in rows if any(what.shots for what in row.accuracies)], few)]
    notes = ["Mean ± sample deviation (number of runs, of different seeds); a single run has neither."]
    notes.append("Of an evaluation repeated with the same seed, only the newest counts.")
    if few:
        notes.append("A few-shot figure of a single run: mean ± deviation over that run's choices of labelled images.")
    if {what for row in rows for what in row.accuracies} - {*full_data, *few}:
        shown = sorted({what.k for what in full_data + few if what.k})
        notes.append(f"Of k-NN, tables and plots show k = {', '.join(map(str, shown))}; report.csv has every k.")
    if any(row.published for row in rows):
        notes.append("Published: from the README of the repository named, not measured here.")
        notes.append("Published linear probes are listed under the cls token, which MAE and SAIM probe.")
        notes.append("aim_base has the size of ViT-B, aim_large that of ViT-L.")
    return "\n\n".join([*parts, "\n".join(f"* {note}" for note in notes)]) + "\n"


def table(rows: Sequence[TableRow], evaluations: Sequence[Evaluation]) -> str:
    """A Markdown table, padded so that it is readable as plain text."""
    titles = ["method", "model", "pretrained on", "epochs", "images seen", "device-hours", "evaluated on"]
    lines = [[*titles, *(what.title for what in evaluations), "source"]]
    for row in rows:
        method, images = row.method, format_cell(row.images_seen, ",.0f")
        hours = format_cell(row.device_hours, ",.1f" if (row.device_hours or 0) >= 1 else ".2g")
        sources = dict.fromkeys(accuracy.source for what, accuracy in row.accuracies.items() if what in evaluations)
        lines.append([
            method.name, method.model, method.pretrained_on, format_cell(method.epochs, "g"), images,
            hours + PROCESSORS.get(row.device, "") if hours else "", method.evaluated_on,
            *(cell(row.accuracies.get(what)) for what in evaluations),
            f"published: {', '.join(sources)}" if row.published else "ours",
        ])  # fmt: skip
    return markdown_table(lines, padded=True)


def format_cell(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, form)


def cell(accuracy: Accuracy | None) -> str:
    """An accuracy as the table shows it, such as "93.6 ± 0.4 (3)"."""
    if accuracy is None:
        return ""
    deviation = "" if accuracy.deviation is None else f" ± {accuracy.deviation:.1f}"
    return f"{accuracy.mean:.1f}{deviation}" + (f" ({accuracy.runs})" if (accuracy.runs or 0) > 1 else "")


def csv_text(rows: Iterable[TableRow]) -> str:
    """The report as CSV: a line for each accuracy; unknown values are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        *names, epochs, evaluated_on = row.method
        cost = [format_cell(epochs, "g"), row.images_seen, row.device_hours, row.device]
        for what, (mean, deviation, runs, source) in sorted(row.accuracies.items()):
            result = [what.name, mean, deviation, runs, str(row.published).lower(), source]
            writer.writerow([*names, *cost, evaluated_on, *result])
    return file.getvalue()


class CurvePoint(NamedTuple):
    """A point of a plot: title of its panel, label of its method, cost of pretraining, and accuracy in percent."""

    panel: str
    label: str
    x: float
    y: float
    deviation: float | None


def label(method: Method) -> str:
    """A method in the legend of a plot."""
    return " ".join(filter(None, [method.model, method.name, method.pretrained_on]))


def points(rows: Sequence[TableRow], cost: Callable[[TableRow], float | None]) -> list[CurvePoint]:
    """Our accuracies, for the evaluations in the tables, against the cost of pretraining, if known."""
    ours = [row for row in rows if not row.published]
    curve_points = []
    for what in columns(rows, few_shot=False) + columns(rows, few_shot=True):
        for row in ours:
            method, x = row.method, cost(row)
            if what in row.accuracies and x is not None:
                accuracy, panel = row.accuracies[what], f"{what.title}, {method.evaluated_on}"
                curve_points.append(CurvePoint(panel, label(method), x, accuracy.mean, accuracy.deviation))
    return curve_points


def by_epochs(row: TableRow) -> float | None:
    """Epochs of pretraining."""
    return row.method.epochs


def by_gpu_hours(row: TableRow) -> float | None:
    """GPU-hours of pretraining; None on a CPU."""
    return row.device_hours if row.device == "cuda" else None


def draw(points: Sequence[CurvePoint], labels: Sequence[str], x_label: str, files: Iterable[Path]) -> None:
    """Draw points, a panel for each evaluation and a colour and marker for each method, and save the figure.

    Args:
        points: at least one.
        labels: all methods of the report, so that a method looks the same in all plots.
        x_label: name of the horizontal axis.
        files: files to save; the suffix sets the format.

    Raises:
        OSError: if a file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(point.panel for point in points))
    across = min(PANELS_PER_ROW, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.5 * across, 3.4 * down + 0.25 * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    handles = {}
    for position, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, position, title=panel, xlabel=x_label, ylabel="accuracy (%)")
        axes.grid(alpha=0.3)
        for index, label in enumerate(labels):
            line = sorted((p for p in points if (p.panel, p.label) == (panel, label)), key=lambda p: p.x)
            if line:
                handles[label], _, _ = axes.errorbar(
                    [p.x for p in line],
                    [p.y for p in line],
                    yerr=[math.nan if p.deviation is None else p.deviation for p in line],
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    capsize=3,
                    clip_on=False,
                )
        axes.set_xlim(left=0)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center")
    for path in files:
        with atomic(path) as file:
            figure.savefig(file, format=path.suffix.removeprefix("."), dpi=150)
