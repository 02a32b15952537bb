"""Report of all evaluations of an MLflow store, with published results.

Reads the finished evaluations of an MLflow store, pools their seeds, and lists each method's accuracies with published
ones (`published.csv`). Prints a Markdown table, and writes it with a CSV file and plots to a folder. The store is not
changed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from semaim.core.files import write_text
from semaim.errors import UserError
from semaim.report.curves import curves
from semaim.report.store import choose, evaluation, method_of, read
from semaim.report.table import (
    Accuracy,
    CurvePoint,
    Evaluation,
    Method,
    TableRow,
    by_epochs,
    by_gpu_hours,
    csv_text,
    draw,
    markdown,
    points,
)

PUBLISHED_ON = "imagenet"  # name of the data of the published results


def pool(runs: Sequence[Any]) -> list[TableRow]:
    """A row for each method.

    Of repeated evaluations, of the same encoder with the same seed, only the newest counts.
    """
    accuracies: dict[Method, dict[Evaluation, dict[Any, Any]]] = defaultdict(lambda: defaultdict(dict))
    encoders: dict[Method, dict[Any, Any]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        method = method_of(run)
        encoder = (run.data.tags["pretrained.run"], run.data.tags.get("pretrained.seed"))
        encoders[method][encoder] = run
        for what in filter(None, map(evaluation, run.data.metrics)):
            accuracies[method][what][encoder, run.data.params.get("seed")] = run
    return [
        TableRow(
            method,
            *pretraining(list(encoders[method].values())),
            accuracies={
                what: mean_accuracy(f"eval/{what.name}", list(newest.values())) for what, newest in measured.items()
            },
            published=False,
        )
        for method, measured in sorted(accuracies.items(), key=lambda item: sort_key(item[0]))
    ]


def sort_key(method: Method) -> tuple[Any, ...]:
    """Rows are sorted by data, model, name and length of pretraining; unknown models come last."""
    epochs = -1.0 if method.epochs is None else method.epochs
    return method.evaluated_on, not method.model, method.model, method.name, method.pretrained_on, epochs


def mean_accuracy(metric: str, runs: Sequence[Any]) -> Accuracy:
    """Mean and sample deviation of a metric; a single few-shot run has its own deviation."""
    values = [run.data.metrics[metric] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else runs[0].data.metrics.get(f"{metric}_std")
    return Accuracy(statistics.fmean(values), deviation, len(values), source="")


def pretraining(runs: Sequence[Any]) -> tuple[float | None, float | None, str]:
    """Images seen, device-hours and device of pretraining, from one evaluation run for each encoder."""

    def mean(metric: str) -> float | None:
        values = [run.data.metrics[metric] for run in runs if metric in run.data.metrics]
        return statistics.fmean(values) if values else None

    devices = sorted({run.data.tags.get("pretrained.device", "") for run in runs})
    hours = mean("pretrained/device_hours") if len(devices) == 1 else None
    return mean("pretrained/images_seen"), hours, " and ".join(filter(None, devices))


def published() -> list[TableRow]:
    """Published results, in the order of `published.csv`."""
    accuracies: dict[Method, dict[Evaluation, Accuracy]] = defaultdict(dict)
    with resources.files("semaim.report").joinpath("published.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            epochs = float(line["epochs"]) if line["epochs"] else None
            method = Method(line["method"], line["model"], "", "", line["pretrained_on"], epochs, line["evaluated_on"])
            what = evaluation(f"eval/{line['evaluation']}")
            assert what is not None, line
            accuracies[method][what] = Accuracy(float(line["accuracy"]), None, None, line["source"])
    return [TableRow(method, None, None, "", measured, published=True) for method, measured in accuracies.items()]


def write(rows: Sequence[TableRow], curve_points: Sequence[CurvePoint], text: str, folder: Path) -> None:
    """Write the report to a folder and print the names of the files.

    Args:
        rows: of the tables.
        curve_points: accuracies during pretraining.
        text: in Markdown.
        folder: output folder.

    Raises:
        UserError: if the folder cannot be written to.
    """
    costs = {
        "accuracy_by_epochs": ("pretraining epochs", points(rows, by_epochs), "says after how many epochs"),
        "accuracy_by_gpu_hours": ("GPU-hours of pretraining", points(rows, by_gpu_hours), "was pretrained on a GPU"),
        "accuracy_during_pretraining": ("pretraining epochs", curve_points, "was measured while it was pretrained"),
    }
    labels = sorted({point.label for _, plotted, _ in costs.values() for point in plotted})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "report.md", text)
        write_text(folder / "report.csv", csv_text(rows))
        print(f"\nwritten: {folder / 'report.md'}\nwritten: {folder / 'report.csv'}")
        for name, (x_label, plotted, requirement) in costs.items():
            files = [folder / f"{name}.png", folder / f"{name}.svg"]
            if plotted:
                draw(plotted, labels, x_label, files)
                print(*(f"written: {file}" for file in files), sep="\n")
            else:
                for file in files:  # of an earlier report
                    file.unlink(missing_ok=True)
                print(f"no plot {name}: no encoder evaluated here {requirement}")
    except OSError as error:
        raise UserError(f"--output={folder} cannot be written: {error}") from error


def write_report(arguments: argparse.Namespace) -> None:
    """Read evaluations, print the table, write the report.

    Raises:
        UserError: for an invalid option, or if there is nothing to report.
    """
    if malformed := [tag for tag in arguments.tag if not tag.partition("=")[0] or "=" not in tag]:
        raise UserError(f"--tag={malformed[0]} must be key=value, such as --tag pretrained.permutation=raster")
    tags = [(key, value) for key, _, value in (tag.partition("=") for tag in arguments.tag)]
    tags += [("data", arguments.data)] if arguments.data else []
    runs = choose(read(arguments.uri, arguments.experiment), tags)
    rows = pool(runs)
    if not arguments.no_published and arguments.data in (None, PUBLISHED_ON):
        rows += published()
    conditions = [f"experiment {name}" for name in arguments.experiment] + [f"{key}={value}" for key, value in tags]
    text = markdown(rows, f"{len(runs)} finished evaluations" + (f" ({', '.join(conditions)})" if conditions else ""))
    print(text, end="")
    write(rows, curves(arguments.uri, runs), text, arguments.output)
