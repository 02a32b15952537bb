"""Online accuracies during pretraining, for the report."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from semaim.report.store import evaluation, method_of, pages, readable
from semaim.report.table import CurvePoint, label

ONLINE = "online/"


def curves(uri: str, evaluations: Sequence[Any]) -> list[CurvePoint]:
    """Online accuracies from the pretraining of these evaluations' encoders, averaged over seeds.

    Args:
        uri: of the store.
        evaluations: its evaluation runs.
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
        CurvePoint(
            panel,
            line,
            epoch,
            statistics.fmean(accuracies),
            statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        )
        for (panel, line), by_epoch in sorted(values.items())
        for epoch, accuracies in sorted(by_epoch.items())
    ]


def history(client: Any, run: Any) -> dict[str, list[tuple[float, float]]]:
    """Epochs and values of each online metric of a pretraining run."""
    epochs_logged = [point for point in client.get_metric_history(run.info.run_id, "train/epoch") if point.step]
    if not epochs_logged:
        return {}
    per_step = epochs_logged[-1].value / epochs_logged[-1].step
    return {
        metric: [
            (round(point.step * per_step, 2), point.value)
            for point in client.get_metric_history(run.info.run_id, metric)
        ]
        for metric in run.data.metrics
        if metric.startswith(ONLINE)
    }


def title(metric: str) -> str:
    """Title of an online metric."""
    name = metric.removeprefix(ONLINE)
    known_evaluation = evaluation(f"eval/{name}")
    return f"online {known_evaluation.title if known_evaluation else name.replace('_', ' ')}"
