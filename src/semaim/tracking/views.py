"""Views of an experiment's page in MLflow: which runs, columns and charts it shows.

MLflow stores a view as a tag of the experiment. Since version 3.16 it lists those with a name under *Views*; earlier
versions read the state from the tag itself, so that both are written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semaim.core.headline import lower_is_better
from semaim.errors import DamagedFile
from semaim.runs.folder import RunFolder, Tracked
from semaim.runs.journal import View

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "mlflow.sharedViewState."
GENERAL = "semaim"  # the view of all pretrainings
SECTION = "semaim-compare"
MAX_CHARACTERS = 5000  # of an experiment's tag on older servers
ATTRIBUTES = ("Dataset", "Duration", "Models", "Source")  # last columns


def view_key(run_id: str) -> str:
    """Key of the view of a sweep, in the address of the page."""
    return f"{GENERAL}-{run_id[:12]}"


def sweep_view(view: View, tracked: Tracked, time: int) -> tuple[str, str]:
    """Key and value of the experiment's tag with the view of a sweep.

    Args:
        view: what to show.
        tracked: the MLflow run of the sweep.
        time: in milliseconds since 1970.
    """
    run_id = str(tracked["run_id"])
    children = f"tags.`mlflow.parentRunId` = '{run_id}'"
    ids = _ids(view.get("runs", []), tracked)
    chosen = f"attributes.run_id IN ({', '.join(map(repr, ids))})" if ids else children
    if len(value := _sweep_tag(view, chosen, time)) > MAX_CHARACTERS:
        value = _sweep_tag(view, children, time)
    return PREFIX + view_key(run_id), value


def _sweep_tag(view: View, chosen: str, time: int) -> str:
    if view["metrics"]:  # by which runs are sorted; a failed one may have good values from before its first step
        chosen += " and attributes.status = 'FINISHED'"
    state = _state(chosen, view["columns"], view["metrics"])
    if view["groups"]:
        keys = [{"mode": mode, "groupByData": name} for mode, name in view["groups"]]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
    return _tag(view["name"], state, time)


def _ids(folders: Sequence[str], tracked: Tracked) -> list[str]:
    """The MLflow runs of folders; none if they are not all in the experiment of a run."""
    with suppress(DamagedFile):
        found = [RunFolder(Path(folder)).tracked() for folder in folders]
        place = (tracked.get("uri"), tracked.get("experiment_id"))
        if all(each and each["run_id"] and (each.get("uri"), each.get("experiment_id")) == place for each in found):
            return [str(each["run_id"]) for each in found if each]
    return []


def remove_view(client: MlflowClient, tracked: Tracked) -> None:
    """Delete the view of a sweep, if there is one and the client can."""
    key, experiment_id = PREFIX + view_key(tracked["run_id"] or ""), tracked.get("experiment_id", "")
    if hasattr(client, "delete_experiment_tag") and key in client.get_experiment(experiment_id).tags:
        client.delete_experiment_tag(experiment_id, key)


def general_view() -> tuple[str, str]:
    """Key and value of the experiment's tag with the view of all pretrainings."""
    columns = [tag(name) for name in ("method", "data", "model", "permutation", "target")] + ["params.`seed`"]
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
        "orderByAsc": not metrics or lower_is_better(metrics[0]),
        "selectedColumns": shown,
        "columnOrder": shown,
        "columnWidths": {name: 150 for name in shown if name.startswith(("tags", "metrics"))},
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
    value = {"name": name, "createdAt": time, "state": json.dumps(state)}
    whole = json.dumps(value | state)
    return whole if len(whole) <= MAX_CHARACTERS else json.dumps(value)  # which versions before 3.16 do not read
