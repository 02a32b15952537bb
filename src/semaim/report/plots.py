"""Plots of the report: accuracies against the cost of pretraining, and during pretraining.

Columns of a table of points: `panel`, the title of its panel; `label` of its method; `x`, the cost of pretraining; `y`,
the accuracy in percent, a mean over runs; its `deviation` over these, or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from semaim.core.files import atomic
from semaim.report.store import evaluation
from semaim.report.table import COLUMN_ORDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

ONLINE = "online/"
# Okabe and Ito's colours, distinguishable with any colour vision, without yellow, which is faint on white. Seven
# colours and eight markers have no common factor: 56 methods look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS_PER_ROW = 3


def points(accuracies: DataFrame, cost: str, of_a_device: bool = False) -> DataFrame:
    """Points of our accuracies in the tables against the cost of pretraining, where it is known.

    Args:
        accuracies: as of `arranged`.
        cost: column of the cost.
        of_a_device: whether it compares on one kind of device only, so that each kind has panels of its own.
    """
    ours = accuracies[accuracies["shown"] & ~accuracies["published"]].sort_values([*COLUMN_ORDER, "row"])
    panel = ours["title"] + ", " + ours["evaluated_on"]
    ours = ours.assign(panel=panel + ", on " + ours["device"] if of_a_device else panel)
    ours = ours.rename(columns={cost: "x", "mean": "y"})
    return ours[["panel", "label", "x", "y", "deviation"]].dropna(subset=["panel", "x"])


def online_points(evaluations: DataFrame) -> DataFrame:
    """Points of online accuracies from the pretraining of these evaluations' encoders, averaged over seeds.

    In place of `x` they have the costs so far, `epochs` and `flops` (NaN if unknown).
    """
    import mlflow
    import pandas as pd

    runs = mlflow.search_runs(
        list(evaluations["experiment_id"].unique()),
        "tags.task = 'pretrain'",
        max_results=None,
        order_by=["start_time"],
        output_format="list",
    )
    newest = {PurePath(run.data.tags.get("run_folder", "")).name: run for run in runs}
    found = [
        (f"online {title}, {encoder.pretrained_on}", encoder.label, epochs, flops, accuracy)
        for encoder in evaluations.drop_duplicates("encoder").itertuples()
        if encoder.encoder in newest
        for title, epochs, flops, accuracy in history(newest[encoder.encoder])
    ]
    by_epoch = pd.DataFrame(found, columns=["panel", "label", "epochs", "flops", "y"])
    groups = by_epoch.groupby(["panel", "label", "epochs"])
    return groups.agg(flops=("flops", "mean"), y=("y", "mean"), deviation=("y", "std")).reset_index()


def history(run: Any) -> Iterator[tuple[str, float, float, float]]:
    """Titles of the online metrics of a pretraining run, and of each point the epochs, the FLOPs and the value."""
    from mlflow import MlflowClient

    client = MlflowClient()

    def per_step(metric: str) -> float:
        logged = [point for point in client.get_metric_history(run.info.run_id, metric) if point.step]
        return logged[-1].value / logged[-1].step if logged else math.nan

    epochs, flops = per_step("train/epoch"), per_step("train/total_flops")
    if math.isnan(epochs):
        return
    for metric in run.data.metrics:
        if metric.startswith(ONLINE) and not metric.endswith(("_top5", "_loss")):
            name = metric.removeprefix(ONLINE)
            known = evaluation(f"eval/{name}")
            for point in client.get_metric_history(run.info.run_id, metric):
                title = known.title if known else name.replace("_", " ")
                yield title, round(point.step * epochs, 2), point.step * flops, point.value


def _log_axis(axes: Axes, ratio: float) -> None:
    """Make the horizontal axis logarithmic, with a few ticks as plain numbers: 100, 300, 3e20.

    Args:
        axes: the panel.
        ratio: of the largest to the smallest value.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    subs = (1.0, 2.0, 5.0) if ratio < 10 else (1.0, 3.0) if ratio < 300 else (1.0,)
    axes.xaxis.set_major_locator(MaxNLocator(3) if 1 < ratio < 5 else LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.4g}".replace("e+", "e"))
    axes.xaxis.set_minor_locator(NullLocator())


def draw(points: DataFrame, labels: Sequence[str], x_label: str, log: bool, files: Iterable[Path]) -> None:
    """Draw points, a panel for each evaluation and a colour and marker for each method, and save the figure.

    Args:
        points: at least one.
        labels: all methods of the report, so that a method looks the same in all plots.
        x_label: name of the horizontal axis, with its unit.
        log: whether this axis is logarithmic.
        files: files to save; the suffix sets the format.
    """
    from matplotlib.figure import Figure

    panels = points.groupby("panel", sort=False)
    across = min(PANELS_PER_ROW, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.5 * across, 3.4 * down + 0.25 * len(labels)), layout="constrained")
    handles = {}
    for position, (panel, inside) in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, position, title=panel, xlabel=x_label, ylabel="accuracy (%)")
        axes.grid(alpha=0.3)
        for label, line in inside.sort_values("x").groupby("label"):
            handles[label], _, _ = axes.errorbar(
                line["x"],
                line["y"],
                yerr=line["deviation"],
                color=COLOURS[labels.index(label) % len(COLOURS)],
                marker=MARKERS[labels.index(label) % len(MARKERS)],
                capsize=3,
                clip_on=False,
            )
        if log:
            _log_axis(axes, inside["x"].max() / inside["x"].min())
        else:
            axes.set_xlim(left=0)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center")
    for path in files:
        with atomic(path) as file:
            figure.savefig(file, format=path.suffix.removeprefix("."), dpi=150)
