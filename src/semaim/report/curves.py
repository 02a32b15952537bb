"""Accuracies during pretraining, for the report: how well each order does after how many epochs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from semaim.report.store import evaluation, method_of, pages, readable
from semaim.report.table import CurvePoint, label

ONLINE = "online/"


def curves(uri: str, evaluations: Sequence[Any]) -> list[CurvePoint]:
    """What was measured while the encoders of these evaluations were pretrained; of several seeds the mean.

    Args:
        uri: of the store.
        evaluations: runs of it.
    """
    from mlflow import MlflowClient

    client = MlflowClient(readable(uri))
    methods = {run.data.tags["pretrained.run"]: method_of(run) for run in evaluations}
    experiments = sorted({run.info.experiment_id for run in evaluations})
    runs = pages(client.search_runs, experiment_ids=experiments, filter_string="tags.task = 'pretrain'")
    newest = {run.info.run_name: run for run in sorted(runs, key=lambda run: run.info.start_time)}
    values: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, method in methods.items():
        if name not in newest:
            continue
        for metric, points in history(client, newest[name]).items():
            for epoch, accuracy in points:
                values[f"{title(metric)}, {method.pretrained_on}", label(method)][epoch].append(accuracy)
    return [
        CurvePoint(panel, line, epoch, statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)
        for (panel, line), by_epoch in sorted(values.items())
        for epoch, found in sorted(by_epoch.items())
    ]


def history(client: Any, run: Any) -> dict[str, list[tuple[float, float]]]:
    """Of each online metric of a pretraining the epochs and values."""
    passed = [point for point in client.get_metric_history(run.info.run_id, "train/epoch") if point.step]
    if not passed:
        return {}
    per_step = passed[-1].value / passed[-1].step
    return {
        metric: [
            (round(point.step * per_step, 2), point.value)
            for point in client.get_metric_history(run.info.run_id, metric)
        ]
        for metric in run.data.metrics
        if metric.startswith(ONLINE)
    }


def title(metric: str) -> str:
    """What an online metric measures, for people."""
    name = metric.removeprefix(ONLINE)
    known = evaluation(f"eval/{name}")
    return f"online {known.title if known else name.replace('_', ' ')}"
