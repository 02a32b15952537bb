"""Report of all evaluations of an MLflow store.

Reads the finished evaluations of an MLflow store, or without any the pretrainings, pools their seeds, and compares the
methods, with published results (`published.csv`) for ImageNet. Prints a Markdown table, and writes it with a CSV file
and plots to a folder. The store is not changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from semaim.core.files import write_text
from semaim.core.store_address import absolute_address
from semaim.errors import UserError
from semaim.report.plots import draw, online_points, points
from semaim.report.store import choose, opened, read, read_pretrainings
from semaim.report.table import PUBLISHED_ON, arranged, csv_text, markdown, pool, published
from semaim.tracking.pages import page_commands
from semaim.tracking.store import configured_store

if TYPE_CHECKING:
    from pandas import DataFrame

EPOCHS = "pretraining epochs"
FLOPS = "floating-point operations of pretraining (FLOPs)"
HOURS = "device-hours of pretraining"


class Plot(NamedTuple):
    """A plot of the report.

    Attributes:
        x_label: name of the horizontal axis, with its unit.
        points: see `semaim.report.plots`.
        requirement: what no encoder does if there are no points.
        log: whether the horizontal axis is logarithmic.
    """

    x_label: str
    points: DataFrame
    requirement: str
    log: bool = False


def write(accuracies: DataFrame, online: DataFrame, text: str, folder: Path) -> None:
    """Write the report and its plots to a folder, and print the names of the files.

    Raises:
        UserError: if the folder cannot be written to.
    """
    hours = points(accuracies, "device_hours", of_a_device=True)
    compute = online.rename(columns={"flops": "x"})
    plots = {
        "accuracy_by_epochs": Plot(EPOCHS, points(accuracies, "epochs"), "says after how many epochs"),
        "accuracy_by_flops": Plot(FLOPS, points(accuracies, "flops"), "has its FLOPs", log=True),
        "accuracy_by_device_hours": Plot(
            HOURS,
            hours,
            "has its hours on one kind of device",
            log=True,
        ),
        "accuracy_during_pretraining": Plot(
            EPOCHS, online.rename(columns={"epochs": "x"}), "was measured while it was pretrained"
        ),
        "accuracy_during_pretraining_by_flops": Plot(
            FLOPS, compute[compute["x"] > 0], "was measured while it was pretrained, with its FLOPs", log=True
        ),
    }
    labels = sorted({label for plot in plots.values() for label in plot.points["label"]})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "report.md", text)
        write_text(folder / "report.csv", csv_text(accuracies))
        print(f"\nwritten: {folder / 'report.md'}\nwritten: {folder / 'report.csv'}")
        for name, plot in plots.items():
            files = [folder / f"{name}.png", folder / f"{name}.svg"]
            if len(plot.points):
                draw(plot.points, labels, plot.x_label, plot.log, files)
                print(*(f"written: {file}" for file in files), sep="\n")
            else:
                for file in files:  # of an earlier report
                    file.unlink(missing_ok=True)
                print(f"no plot {name}: no encoder evaluated here {plot.requirement}")
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
    if (uri := arguments.uri or configured_store()) is None:
        raise UserError("no MLflow store is configured (tracking= is not mlflow): give --uri")
    with opened(uri):
        found = read(arguments.experiment)
        runs = choose(read_pretrainings(arguments.experiment) if found.empty else found, tags)
        online = online_points(runs)
    kind = "pretrainings" if found.empty else "evaluations"
    on_imagenet = PUBLISHED_ON in set(runs["evaluated_on"])
    with_published = arguments.published if arguments.published is not None else on_imagenet
    accuracies = arranged(pool(runs), *([published()] if with_published else []))
    conditions = [f"experiment {name}" for name in arguments.experiment] + [f"{key}={value}" for key, value in tags]
    selection = f"{len(runs)} finished {kind}" + (f" ({', '.join(conditions)})" if conditions else "")
    text = markdown(accuracies, selection, arguments.by)
    print(text, end="")
    write(accuracies, online, text, arguments.output)
    experiments = runs["experiment_id"].unique()
    page = f"/{experiments[0]}" if len(experiments) == 1 else ""
    for purpose, command in page_commands(absolute_address("--uri", uri), page).items():
        print(f"{purpose + ':':<11} {command}")
