"""Methods beside each other: `python -m semaim.report [--uri URI] [--experiment NAME] [--data NAME] ...`.

Reads the finished evaluations of an MLflow store, pools their seeds, and shows each method's accuracies beside those
that papers have published (`published.csv`). Prints a Markdown table, and writes it with a CSV file and plots to a
folder. Nothing is written to the store.

An evaluation is a run whose tags say which encoder was evaluated (`pretrained.run`, `pretrained.model`, ...) and on
which `data`, and whose metrics `eval/...` are accuracies in percent.
"""

from __future__ import annotations

import argparse
import csv
import logging
import re
import sqlite3
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from semaim.errors import UserError
from semaim.files import write_text
from semaim.report_table import (
    PROTOCOLS,
    Evaluation,
    Figure,
    Method,
    Row,
    by_epochs,
    by_gpu_hours,
    csv_text,
    draw,
    markdown,
    points,
)
from semaim.tracking_store import SQLITE, absolute_uri, refusal

SERVERS = ("http://", "https://", "postgresql", "mysql", "mssql")
PAGE = 1000  # runs asked of MLflow at a time
PUBLISHED_ON = "imagenet"  # our name of the data that the published figures were measured on
ACCURACY = re.compile(r"eval/((?:(knn)_(\d+)|(linprobe))_(cls|mean)(?:_(\d+)shot)?|(finetune)(?:_(best|ema))?)")
HOW_TO = "python -m semaim.run task=knn checkpoint=runs/<name>"


def evaluation(metric: str) -> Evaluation | None:
    """What a metric such as `eval/knn_20_mean` measures; None if it is no accuracy of an evaluation."""
    if (match := ACCURACY.fullmatch(metric)) is None:
        return None
    name, knn, k, linprobe, features, shots, finetune, variant = match.groups()
    protocol = list(PROTOCOLS).index(knn or linprobe or finetune)
    return Evaluation(int(shots or 0), protocol, int(k or 0), features or variant or "", name)


def readable(uri: str) -> str:
    """The address to open a store by: of a SQLite file one that SQLite itself keeps from creating or changing it.

    Raises:
        UserError: if there is no such file, it is no MLflow store, or the address is of no kind that MLflow has.
    """
    if not uri.startswith((SQLITE, *SERVERS)):
        raise UserError(f"--uri={uri} is no MLflow store: give {SQLITE}<file> or http://<server>")
    if not uri.startswith(SQLITE):
        return uri
    path = absolute_uri(uri).removeprefix(SQLITE)
    if not Path(path).is_file():
        raise UserError(f"--uri={uri}: there is no file {path}; give the tracking.uri that the runs had")
    name = f"file:{quote(path)}"
    try:  # at once, where MLflow would try again for minutes
        with closing(sqlite3.connect(f"{name}?mode=ro", uri=True)) as database:
            database.execute("SELECT version_num FROM alembic_version")
    except sqlite3.Error as error:
        raise UserError(f"--uri={uri} cannot be read as an MLflow store ({error})") from error
    from sqlalchemy import URL  # with MLflow; it knows which characters it takes for its own

    return URL.create("sqlite+pysqlite", database=name, query={"mode": "ro", "uri": "true"}).render_as_string()


def pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """All results of one of MLflow's searches."""
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token, **arguments)
        yield from page
        if not (token := page.token):
            return


def read(uri: str, experiments: Collection[str]) -> list[Any]:
    """The evaluations of a store, whatever their status.

    Args:
        uri: the store.
        experiments: names of experiments; none for all.

    Raises:
        UserError: if the store cannot be read, or has no such experiment.
    """
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise UserError(f"MLflow is not installed ({error}): pip install mlflow") from error
    address = readable(uri)
    for name in ("mlflow", "alembic", "urllib3"):  # they print tracebacks of errors that are reported below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = MlflowClient(address)
        known = {found.name: found.experiment_id for found in pages(client.search_experiments)}
        if unknown := [name for name in experiments if name not in known]:
            raise UserError(f"--experiment={unknown[0]} does not exist; there are: {', '.join(sorted(known))}")
        ids = [known[name] for name in experiments or known]
        runs = list(pages(client.search_runs, experiment_ids=ids, filter_string="tags.task != 'pretrain'"))
    except UserError:
        raise
    except Exception as error:  # MLflow and what lies below it raise many kinds
        said = re.split(r"\. ", refusal(uri, error))[0]
        hint = f"; if another version of MLflow wrote it: mlflow db upgrade {uri}" if uri.startswith(SQLITE) else ""
        raise UserError(f"--uri={uri} cannot be read as an MLflow store ({said}){hint}") from error
    return [run for run in runs if "pretrained.run" in run.data.tags and any(map(evaluation, run.data.metrics))]


def choose(runs: Sequence[Any], tags: Sequence[tuple[str, str]]) -> list[Any]:
    """The finished evaluations that have all of these tags.

    Raises:
        UserError: if none is left; says what took the last.
    """
    if not runs:
        raise UserError(f"there is no evaluation here yet; make one with: {HOW_TO}")
    chosen = [run for run in runs if run.info.status == "FINISHED"]
    if not chosen:
        states = ", ".join(sorted({run.info.status for run in runs}))
        raise UserError(f"of {len(runs)} evaluations here none is finished ({states}); make one with: {HOW_TO}")
    for key, value in tags:
        there = sorted({run.data.tags[key] for run in chosen if key in run.data.tags})
        chosen = [run for run in chosen if run.data.tags.get(key) == value]
        if not chosen:
            option = f"--data={value}" if key == "data" else f"--tag={key}={value}"
            raise UserError(
                f"no finished evaluation fits {option}; there are: {', '.join(there) or 'none with this tag'}; "
                f"make one with: {HOW_TO}"
            )
    return chosen


def method_of(run: Any) -> Method:
    """What an evaluation says of its encoder. Without an order of patches it goes by the name of its checkpoint."""
    tags, epochs = run.data.tags, run.data.metrics.get("pretrained/epochs")
    permutation, target = tags.get("pretrained.permutation", ""), tags.get("pretrained.target", "")
    words = [permutation, target, tags.get("pretrained.options", ""), tags.get("pretrained.weights", "")]
    return Method(
        name=" ".join(filter(None, words)) if permutation else tags["pretrained.run"],
        model=tags.get("pretrained.model", ""),
        permutation=permutation,
        target=target,
        pretrained_on=tags.get("pretrained.data", ""),
        epochs=None if epochs is None else round(epochs, 2),  # images that cannot be read make small differences
        evaluated_on=tags.get("data", ""),
    )


def pool(runs: Sequence[Any]) -> list[Row]:
    """A row for each method.

    Of evaluations made again, of the same encoder with the same seed, only the newest counts.
    """
    figures: dict[Method, dict[Evaluation, dict[Any, Any]]] = defaultdict(lambda: defaultdict(dict))
    encoders: dict[Method, dict[Any, Any]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        method = method_of(run)
        encoder = (run.data.tags["pretrained.run"], run.data.tags.get("pretrained.seed"))
        encoders[method][encoder] = run
        for what in filter(None, map(evaluation, run.data.metrics)):
            figures[method][what][encoder, run.data.params.get("seed")] = run
    return [
        Row(
            method,
            *pretraining(list(encoders[method].values())),
            figures={what: figure(f"eval/{what.name}", list(newest.values())) for what, newest in measured.items()},
            published=False,
        )
        for method, measured in sorted(figures.items(), key=lambda item: place(item[0]))
    ]


def place(method: Method) -> tuple[Any, ...]:
    """Rows are sorted by data, model, name and length of pretraining; of what is not known models come last."""
    epochs = -1.0 if method.epochs is None else method.epochs
    return method.evaluated_on, not method.model, method.model, method.name, method.pretrained_on, epochs


def figure(metric: str, runs: Sequence[Any]) -> Figure:
    """Mean and sample deviation of a metric; of one few-shot run the deviation that it found itself."""
    values = [run.data.metrics[metric] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else runs[0].data.metrics.get(f"{metric}_std")
    return Figure(statistics.fmean(values), deviation, len(values), source="")


def pretraining(runs: Sequence[Any]) -> tuple[float | None, float | None, str]:
    """Images seen, device-hours and device, from one run for each encoder."""

    def mean(metric: str) -> float | None:
        values = [run.data.metrics[metric] for run in runs if metric in run.data.metrics]
        return statistics.fmean(values) if values else None

    devices = sorted({run.data.tags.get("pretrained.device", "") for run in runs})
    hours = mean("pretrained/device_hours") if len(devices) == 1 else None
    return mean("pretrained/images_seen"), hours, " and ".join(filter(None, devices))


def published() -> list[Row]:
    """The figures of papers, in the order of `published.csv`."""
    figures: dict[Method, dict[Evaluation, Figure]] = defaultdict(dict)
    with resources.files("semaim").joinpath("published.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            epochs = float(line["epochs"]) if line["epochs"] else None
            method = Method(line["method"], line["model"], "", "", line["pretrained_on"], epochs, line["evaluated_on"])
            what = evaluation(f"eval/{line['evaluation']}")
            assert what is not None, line
            figures[method][what] = Figure(float(line["accuracy"]), None, None, line["source"])
    return [Row(method, None, None, "", measured, published=True) for method, measured in figures.items()]


def write(rows: Sequence[Row], text: str, folder: Path) -> None:
    """Write the report to a folder and say on the screen what was written.

    Raises:
        UserError: if the folder cannot be written to.
    """
    costs = {
        "accuracy_by_epochs": ("pretraining epochs", points(rows, by_epochs), "says after how many epochs"),
        "accuracy_by_gpu_hours": ("GPU-hours of pretraining", points(rows, by_gpu_hours), "was pretrained on a GPU"),
    }
    labels = sorted({point.label for _, found, _ in costs.values() for point in found})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "report.md", text)
        write_text(folder / "report.csv", csv_text(rows))
        print(f"\nwritten: {folder / 'report.md'}\nwritten: {folder / 'report.csv'}")
        for name, (x_label, found, needed) in costs.items():
            files = [folder / f"{name}.png", folder / f"{name}.svg"]
            if found:
                draw(found, labels, x_label, files)
                print(*(f"written: {file}" for file in files), sep="\n")
            else:
                for file in files:  # of an earlier report
                    file.unlink(missing_ok=True)
                print(f"no plot {name}: no encoder evaluated here {needed}")
    except OSError as error:
        raise UserError(f"--output={folder} cannot be written: {error}") from error


def report(arguments: argparse.Namespace) -> None:
    """Read, print and write.

    Raises:
        UserError: for an option that does not fit, or if there is nothing to report.
    """
    if malformed := [tag for tag in arguments.tag if not tag.partition("=")[0] or "=" not in tag]:
        raise UserError(f"--tag={malformed[0]} must be key=value, such as --tag pretrained.permutation=raster")
    tags = [(key, value) for key, _, value in (tag.partition("=") for tag in arguments.tag)]
    tags += [("data", arguments.data)] if arguments.data else []
    runs = choose(read(arguments.uri, arguments.experiment), tags)
    rows = pool(runs)
    if not arguments.no_published and arguments.data in (None, PUBLISHED_ON):
        rows += published()
    asked = [f"experiment {name}" for name in arguments.experiment] + [f"{key}={value}" for key, value in tags]
    text = markdown(rows, f"{len(runs)} finished evaluations" + (f" ({', '.join(asked)})" if asked else ""))
    print(text, end="")
    write(rows, text, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semaim.report", description="Methods beside each other.")
    parser.add_argument("--uri", default=f"{SQLITE}mlflow.db", help="MLflow store (%(default)s); nothing is changed")
    parser.add_argument("--experiment", action="append", default=[], help="only of this experiment; repeatable")
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE",
                        help="only evaluations that have this MLflow tag; repeatable, all must hold")  # fmt: skip
    parser.add_argument("--data", help=f"only evaluations on this data set (published ones are on {PUBLISHED_ON})")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write to (%(default)s)")
    parser.add_argument("--no-published", action="store_true", help="without the figures of papers")
    try:
        report(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
