"""Evaluations in an MLflow store, as a table with a row for each run; NaN is an unknown value.

An evaluation is a run whose tags name the encoder (`pretrained.run`, `pretrained.model`, ...) and the `data`, and whose
metrics `eval/...` are accuracies in percent, beside losses, which the report leaves out. A pretraining has accuracies
`online/...`, which the report shows if there is no evaluation.
"""

from __future__ import annotations

import logging
import re
import shlex
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from semaim.config.naming import other_overrides
from semaim.core.formatting import command
from semaim.core.store_address import SQLITE, absolute_address
from semaim.errors import UserError
from semaim.report.speed import speed, with_speed_of_encoders
from semaim.tracking.store import client_uri, mlflow_errors

if TYPE_CHECKING:
    from pandas import DataFrame

ACCURACY = re.compile(
    r"(?:eval/)?((?:online/)?(?:(knn)_(\d+)|(linprobe|linear))_(cls|mean|mean_before_norm)(_top5)?(?:_(\d+)shot)?"
    r"|(finetune)(?:_(best|ema|top5))?)"
)
PROTOCOLS = {"knn": "k-NN", "linear": "linear", "linprobe": "linear probe", "finetune": "fine-tune"}
MAKE_ONE = "make one with: semaim run task=knn checkpoint=runs/<name>"
# Columns of the table, by MLflow's names.
COLUMNS = {
    "tags.data": "evaluated_on", "params.seed": "seed", "tags.pretrained.run": "encoder",
    "tags.pretrained.seed": "encoder_seed", "tags.pretrained.method": "method", "tags.pretrained.model": "model",
    "tags.pretrained.permutation": "permutation", "tags.pretrained.target": "target",
    "tags.pretrained.options": "options", "tags.pretrained.weights": "weights", "tags.pretrained.data": "pretrained_on",
    "tags.pretrained.device": "device", "metrics.pretrained/epochs": "epochs",
    "metrics.pretrained/images_seen": "images_seen", "metrics.pretrained/device_hours": "device_hours",
    "metrics.pretrained/flops": "flops",
}  # fmt: skip
ENCODER = ["encoder", "encoder_seed"]
PARTS = ["model", "permutation", "target", "options", "weights", "pretrained_on"]  # besides the name of the method
METHOD = ["method", "label", *PARTS, "epochs", "evaluated_on"]
# Columns of a pretraining, in place of those of the evaluations of its encoder.
OF_PRETRAINING = {
    "tags.method": "tags.pretrained.method", "tags.model": "tags.pretrained.model",
    "tags.permutation": "tags.pretrained.permutation",
    "tags.target": "tags.pretrained.target", "tags.data": "tags.pretrained.data",
    "params.seed": "tags.pretrained.seed", "tags.mlflow.runName": "tags.pretrained.run",
    "tags.device": "tags.pretrained.device", "metrics.train/epoch": "metrics.pretrained/epochs",
    "metrics.train/device_hours": "metrics.pretrained/device_hours",
    "metrics.train/total_flops": "metrics.pretrained/flops",
}  # fmt: skip


class Evaluation(NamedTuple):
    """A kind of accuracy, a column of the report; columns sort by these fields."""

    shots: int  # labelled images per class; 0 for all
    protocol: int  # index in PROTOCOLS
    k: int  # neighbours, or 0
    variant: str  # "cls", "mean", ... (which features); of fine-tuning "" (last epoch), "best" or "ema"; "top5"
    evaluation: str  # the metric, without "eval/"; online accuracies begin with "online/"
    title: str


def evaluation(metric: str) -> Evaluation | None:
    """The evaluation of a metric such as `eval/knn_20_mean`; None for other metrics."""
    if (match := ACCURACY.fullmatch(metric)) is None or not metric.startswith(("eval/", "online/")):
        return None
    name, knn, k, linear, features, top5, shots, finetune, variant = match.groups()
    protocol, which = knn or linear or finetune, f"{features or variant or ''}{top5 or ''}".replace("_", " ")
    when = "online" if name.startswith("online/") else ""
    title = " ".join(filter(None, [when, shots and f"{shots}-shot", PROTOCOLS[protocol], k, which]))
    return Evaluation(int(shots or 0), list(PROTOCOLS).index(protocol), int(k or 0), which, name, title)


def readable(uri: str) -> str:
    """The address to open a store with; a SQLite file is opened read-only, so it is never created or changed.

    Raises:
        UserError: if there is no such file, it is no MLflow store, or the address is not accepted.
    """
    address = absolute_address("--uri", uri)
    if not address.startswith(SQLITE):
        return address
    path = address.removeprefix(SQLITE)
    if not Path(path).is_file():
        raise UserError(f"--uri={uri}: there is no file {path}; give the tracking.uri that the runs had")
    name = f"file:{quote(path)}"
    try:  # fails at once, where MLflow would retry for minutes
        with closing(sqlite3.connect(f"{name}?mode=ro", uri=True)) as database:
            database.execute("SELECT version_num FROM alembic_version")
    except sqlite3.Error as error:
        raise UserError(f"--uri={uri} cannot be read as an MLflow store ({error})") from error
    from sqlalchemy import URL  # a dependency of MLflow; escapes reserved characters

    return URL.create("sqlite+pysqlite", database=name, query={"mode": "ro", "uri": "true"}).render_as_string()


@contextmanager
def opened(uri: str) -> Iterator[None]:
    """Make MLflow read this store; an error in the block becomes a UserError."""
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise UserError(f"MLflow is not installed ({error}): pip install mlflow") from error
    address = readable(uri)
    for name in ("mlflow", "alembic", "urllib3"):  # they log tracebacks of errors that are reported below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hint = ""
    if uri.startswith(SQLITE):
        upgrade = command("mlflow", "db", "upgrade", client_uri(absolute_address("--uri", uri)))
        hint = f"; if another version of MLflow wrote it: {upgrade}"
    with mlflow_errors(uri, f"--uri={uri} cannot be read as an MLflow store ({{reason}}){hint}"):
        mlflow.set_tracking_uri(address)
        yield


def read(experiments: Collection[str]) -> DataFrame:
    """The evaluations of the opened store, of any status, the newest last: MLflow's columns and those of `methods`.

    Args:
        experiments: names of experiments; none for all.

    Raises:
        UserError: if there is no such experiment.
    """
    runs = _search(experiments, "tags.task != 'pretrain' AND tags.`pretrained.run` != ''")
    runs = with_speed_of_encoders(runs, _search(experiments, "tags.task = 'pretrain'"))
    return _with_accuracies(runs, "metrics.eval/")


def read_pretrainings(experiments: Collection[str]) -> DataFrame:
    """The pretrainings of the opened store with online accuracies, as `read` returns evaluations.

    Raises:
        UserError: as `read`.
    """
    runs = _search(experiments, "tags.task = 'pretrain'")
    known = {old: new for old, new in OF_PRETRAINING.items() if old in runs}
    runs = runs.assign(**{new: runs[old] for old, new in known.items()})
    if "tags.run_folder" in runs:  # whose name evaluations have; the run may have been given another in MLflow
        runs["tags.pretrained.run"] = [PurePath(folder).name for folder in runs["tags.run_folder"].fillna("")]
    if "tags.command" in runs:
        runs["tags.pretrained.options"] = [_options(command) for command in runs["tags.command"]]
    return _with_accuracies(runs.join(speed(runs)), "metrics.online/")


def _options(command: Any) -> str:
    """The options of a command that affect the result, without the choices that have columns of their own."""
    words = shlex.split(command) if isinstance(command, str) else []
    own = ("model", "permutation", "target", "data", "seed", "data.root", "task")
    options = other_overrides(own, [word for word in words if "=" in word and not word.startswith("-")])
    return " ".join(option for option in options if not option.startswith(("task.", "evaluators=")))


def _search(experiments: Collection[str], condition: str) -> DataFrame:
    import mlflow

    known = {each.name: each.experiment_id for each in mlflow.search_experiments()}
    if unknown := [name for name in experiments if name not in known]:
        raise UserError(f"--experiment={unknown[0]} does not exist; there are: {', '.join(sorted(known))}")
    return mlflow.search_runs(
        [known[name] for name in experiments],
        condition,
        max_results=None,
        search_all_experiments=True,  # if none is named
    )


def _with_accuracies(runs: DataFrame, prefix: str) -> DataFrame:
    """The runs with an accuracy, the newest last, and the columns of `methods`."""
    other = [column for column in runs if column.startswith(("metrics.eval/", "metrics.online/"))]
    runs = runs.drop(columns=[column for column in other if not column.startswith(prefix)])
    accuracies = [column for column in runs if evaluation(column.removeprefix("metrics."))]
    runs = runs[runs[accuracies].notna().any(axis=1)].sort_values(["start_time", "run_id"])
    return runs.join(methods(runs))


def methods(runs: DataFrame) -> DataFrame:
    """The columns COLUMNS; an encoder without an order of patches has its checkpoint as the name of its method.

    Runs of earlier versions have no name of a method. It is known if a later evaluation of the same encoder has it,
    else it is empty.
    """
    found = runs.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS)
    data = ["evaluated_on", "pretrained_on"]
    found[data] = found[data].astype(object).fillna("")
    found["epochs"] = found["epochs"].round(2)  # unreadable images cause small differences
    names = found["method"].astype(object)
    known = names.groupby([found[column] for column in (*ENCODER, *PARTS)], dropna=False).transform("first")
    found["method"] = known.fillna(found["encoder"].where(found["permutation"].isna())).fillna("")
    return found


def labels(runs: DataFrame) -> list[str]:
    """Names for plots: the method, and what else differs between pretrainings of one method, but for their length."""
    named = runs.assign(method=method_texts(runs))
    within = named.groupby("method")
    return joined(named[["method", *(part for part in PARTS if (within[part].nunique(dropna=False) > 1).any())]])


def method_texts(table: DataFrame) -> list[str]:
    """The method of each row, or the composition of one whose name is unknown."""
    composition = joined(table[["permutation", "target"]])
    return [name or other for name, other in zip(table["method"], composition, strict=True)]


def joined(table: DataFrame) -> list[str]:
    """The known values of each row as one text."""
    return [" ".join(filter(None, row)) for row in table.astype(object).fillna("").itertuples(index=False)]


def choose(runs: DataFrame, tags: Sequence[tuple[str, str]]) -> DataFrame:
    """The finished evaluations that have all of these tags, with a `label` for plots.

    Raises:
        UserError: if none remains; names the condition that excluded the last ones.
    """
    if runs.empty:
        raise UserError(f"there is no evaluation here yet; {MAKE_ONE}")
    chosen = runs[runs["status"] == "FINISHED"]
    if chosen.empty:
        states = ", ".join(sorted(runs["status"].unique()))
        raise UserError(f"of {len(runs)} evaluations here none is finished ({states}); {MAKE_ONE}")
    for key, value in tags:
        values = chosen.reindex(columns=[f"tags.{key}"]).squeeze(axis=1)
        chosen = chosen[values == value]
        if chosen.empty:
            option = f"--data={value}" if key == "data" else f"--tag={key}={value}"
            there = ", ".join(sorted(values.dropna().unique())) or "none with this tag"
            raise UserError(f"no finished evaluation fits {option}; there are: {there}; {MAKE_ONE}")
    return chosen.assign(label=labels(chosen))
