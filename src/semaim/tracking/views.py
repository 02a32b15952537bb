"""Views of an experiment's page in MLflow: which runs, columns and charts it shows.

MLflow stores a view as a tag of the experiment. Since version 3.16 it lists those with a name under *Views*; earlier
versions read the state from the tag itself, so that both are written.
"""

from __future__ import annotations

import json
from typing import Any

from semaim.runs.journal import View

PREFIX = "mlflow.sharedViewState."
GENERAL = "semaim"  # the view of all pretrainings
SECTION = "semaim-compare"
RUN_NAME = "attributes.`Run Name`"
ATTRIBUTES = ("Dataset", "Duration", "Models", "Source")  # last columns


def view_key(run_id: str) -> str:
    """Key of the view of a sweep, in the address of the page."""
    return f"{GENERAL}-{run_id[:12]}"


def sweep_view(view: View, run_id: str, time: int) -> tuple[str, str]:
    """Key and value of the experiment's tag with the view of a sweep.

    Args:
        view: what to show.
        run_id: MLflow run of the sweep.
        time: in milliseconds since 1970.
    """
    state = _state(f"tags.`mlflow.parentRunId` = '{run_id}'", view["columns"], view["metrics"])
    if view["groups"]:
        keys = [{"mode": mode, "groupByData": name} for mode, name in view["groups"]]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
    return PREFIX + view_key(run_id), _tag(view["name"], state, time)


def general_view() -> tuple[str, str]:
    """Key and value of the experiment's tag with the view of all pretrainings."""
    columns = [tag(name) for name in ("data", "model", "permutation", "target")] + ["params.`seed`"]
    metrics = ["eval/knn_10_mean", "online/knn_10_mean"]
    return PREFIX + GENERAL, _tag("Pretrainings", _state("tags.task = 'pretrain'", columns, metrics), 0)


def tag(name: str) -> str:
    """The column of a tag."""
    return f"tags.`{name}`"


def _state(chosen: str, columns: list[str], metrics: list[str]) -> dict[str, Any]:
    shown = [*columns, *(f"metrics.`{name}`" for name in metrics), *(f"attributes.`{name}`" for name in ATTRIBUTES)]
    section = {"uuid": SECTION, "name": "compare", "display": True, "isReordered": True, "deleted": False}
    return {
        "searchFilter": chosen,
        "orderByKey": f"metrics.`{metrics[0]}`" if metrics else "tags.`mlflow.runName`",  # by time, they are nested
        "orderByAsc": not metrics,
        "selectedColumns": shown,
        "columnOrder": shown,
        "columnWidths": {RUN_NAME: 240} | {name: 150 for name in shown if name.startswith(("tags", "metrics"))},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [_line(name) for name in metrics],
        "compareRunSections": [section | {"isGenerated": False}],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
    }


def _line(metric: str) -> dict[str, Any]:
    """A chart of a metric: a line over the steps, or a bar for a metric of evaluations, which has one step."""
    chart: dict[str, Any] = {"uuid": f"semaim-{metric}", "type": "BAR", "metricKey": metric, "runsCountToCompare": 50}
    chart |= {"metricSectionId": SECTION, "deleted": False, "isGenerated": False}
    if not metric.startswith("eval/"):
        chart |= {"type": "LINE", "selectedMetricKeys": [metric], "xAxisKey": "step", "yAxisKey": "metric"}
        chart |= {"selectedXAxisMetricKey": "", "lineSmoothness": 0, "scaleType": "linear", "xAxisScaleType": "linear"}
        chart |= {"yAxisExpressions": [], "range": {}, "ignoreOutliers": False}
        chart |= {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return chart


def _tag(name: str, state: dict[str, Any], time: int) -> str:
    return json.dumps({"name": name, "createdAt": time, "state": json.dumps(state)} | state)
