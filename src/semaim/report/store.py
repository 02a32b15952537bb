"""Evaluations in an MLflow store: their metrics and encoders.

An evaluation is a run whose tags name the encoder (`pretrained.run`, `pretrained.model`, ...) and the `data`, and whose
metrics `eval/...` are accuracies in percent.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from semaim.errors import UserError
from semaim.report.table import PROTOCOLS, Evaluation, Method
from semaim.tracking.store import SQLITE, absolute_uri, mlflow_errors

SERVERS = ("http://", "https://", "postgresql", "mysql", "mssql")
PAGE = 1000  # runs per request
ACCURACY = re.compile(r"eval/((?:(knn)_(\d+)|(linprobe))_(cls|mean)(?:_(\d+)shot)?|(finetune)(?:_(best|ema))?)")
EXAMPLE_COMMAND = "semaim run task=knn checkpoint=runs/<name>"


def evaluation(metric: str) -> Evaluation | None:
    """The evaluation of a metric such as `eval/knn_20_mean`; None for other metrics."""
    if (match := ACCURACY.fullmatch(metric)) is None:
        return None
    name, knn, k, linprobe, features, shots, finetune, variant = match.groups()
    protocol = list(PROTOCOLS).index(knn or linprobe or finetune)
    return Evaluation(int(shots or 0), protocol, int(k or 0), features or variant or "", name)


def readable(uri: str) -> str:
    """The address to open a store with; a SQLite file is opened read-only, so it is never created or changed.

    Raises:
        UserError: if there is no such file, it is no MLflow store, or MLflow does not support the address.
    """
    if not uri.startswith((SQLITE, *SERVERS)):
        raise UserError(f"--uri={uri} is no MLflow store: give {SQLITE}<file> or http://<server>")
    if not uri.startswith(SQLITE):
        return uri
    path = absolute_uri(uri).removeprefix(SQLITE)
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


def pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """All results of one of MLflow's searches."""
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token, **arguments)
        yield from page
        if not (token := page.token):
            return


def read(uri: str, experiments: Collection[str]) -> list[Any]:
    """The evaluations of a store, of any status.

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
    for name in ("mlflow", "alembic", "urllib3"):  # they log tracebacks of errors that are reported below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hint = f"; if another version of MLflow wrote it: mlflow db upgrade {uri}" if uri.startswith(SQLITE) else ""
    with mlflow_errors(uri, f"--uri={uri} cannot be read as an MLflow store ({{reason}}){hint}"):
        client = MlflowClient(address)
        experiment_ids = {each.name: each.experiment_id for each in pages(client.search_experiments)}
        if unknown := [name for name in experiments if name not in experiment_ids]:
            raise UserError(f"--experiment={unknown[0]} does not exist; there are: {', '.join(sorted(experiment_ids))}")
        ids = [experiment_ids[name] for name in experiments or experiment_ids]
        runs = list(pages(client.search_runs, experiment_ids=ids, filter_string="tags.task != 'pretrain'"))
    return [run for run in runs if "pretrained.run" in run.data.tags and any(map(evaluation, run.data.metrics))]


def choose(runs: Sequence[Any], tags: Sequence[tuple[str, str]]) -> list[Any]:
    """The finished evaluations that have all of these tags.

    Raises:
        UserError: if none remains; names the condition that excluded the last ones.
    """
    if not runs:
        raise UserError(f"there is no evaluation here yet; make one with: {EXAMPLE_COMMAND}")
    chosen = [run for run in runs if run.info.status == "FINISHED"]
    if not chosen:
        states = ", ".join(sorted({run.info.status for run in runs}))
        raise UserError(
            f"of {len(runs)} evaluations here none is finished ({states}); make one with: {EXAMPLE_COMMAND}"
        )
    for key, value in tags:
        values = sorted({run.data.tags[key] for run in chosen if key in run.data.tags})
        chosen = [run for run in chosen if run.data.tags.get(key) == value]
        if not chosen:
            option = f"--data={value}" if key == "data" else f"--tag={key}={value}"
            raise UserError(
                f"no finished evaluation fits {option}; there are: {', '.join(values) or 'none with this tag'}; "
                f"make one with: {EXAMPLE_COMMAND}"
            )
    return chosen


def method_of(run: Any) -> Method:
    """The method of an evaluation's encoder. Without an order of patches it is named after its checkpoint."""
    tags, epochs = run.data.tags, run.data.metrics.get("pretrained/epochs")
    permutation, target = tags.get("pretrained.permutation", ""), tags.get("pretrained.target", "")
    parts = [permutation, target, tags.get("pretrained.options", ""), tags.get("pretrained.weights", "")]
    return Method(
        name=" ".join(filter(None, parts)) if permutation else tags["pretrained.run"],
        model=tags.get("pretrained.model", ""),
        permutation=permutation,
        target=target,
        pretrained_on=tags.get("pretrained.data", ""),
        epochs=None if epochs is None else round(epochs, 2),  # unreadable images cause small differences
        evaluated_on=tags.get("data", ""),
    )
