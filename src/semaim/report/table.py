"""Accuracies of the report, a row for each, as CSV, and as groups for the Markdown tables; NaN is an unknown value.

The columns are CSV_COLUMNS, and those that `arranged` adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from semaim.core.comparison import METHOD as METHOD_NAME
from semaim.core.comparison import Comparison, Group, Score, compare, named_metric
from semaim.core.formatting import plural
from semaim.core.headline import headlines
from semaim.report.speed import FLOPS_NOTE, NOTE, SPEED, cost_table
from semaim.report.store import ENCODER, METHOD, evaluation, method_texts

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# Properties of pretrainings that the table shows if they differ, with their headings: of ours, and of all.
OURS = {"permutation": "permutation", "target": "target", "weights": "weights"}
ALL = {"model": "model", "pretrained_on": "pretrained on", "epochs": "epochs", "flops": "FLOPs"}
CSV_COLUMNS = [
    "method", "model", "permutation", "target", "options", "weights", "pretrained_on", "epochs", "images_seen", "flops",
    "device_hours", "device", *SPEED, "evaluated_on", "evaluation", "mean", "deviation", "runs", "published", "source",
]  # fmt: skip
ROW_ORDER = ["evaluated_on", "model", "method", "pretrained_on", "epochs"]  # unknown models come last
PUBLISHED_ON = "imagenet"  # name of the data of the published results
UNNAMED = ("FLOPs", "source")  # headings that tell no rows apart
COLUMN_ORDER = ["shots", "protocol", "k", "variant"]


def pool(runs: DataFrame) -> DataFrame:
    """Accuracies of evaluations: mean and sample deviation over the runs of each method.

    Of repeated evaluations, of the same encoder with the same seed, only the newest (the last row) counts. A single
    few-shot run has its own deviation.
    """
    import pandas as pd

    measured = pd.concat(
        runs[[*METHOD, *ENCODER, "seed"]].assign(
            evaluation=what.evaluation, accuracy=runs[metric], own=runs.get(f"{metric}_std", float("nan"))
        )
        for metric in runs
        if (what := evaluation(metric.removeprefix("metrics.")))
    ).dropna(subset="accuracy")
    newest = measured.drop_duplicates([*METHOD, *ENCODER, "seed", "evaluation"], keep="last")
    groups = newest.groupby([*METHOD, "evaluation"], dropna=False)
    pooled = groups["accuracy"].agg(mean="mean", deviation="std", runs="count")
    pooled["deviation"] = pooled["deviation"].fillna(groups["own"].last())
    return pooled.reset_index().merge(cost(runs), on=METHOD).sort_values(ROW_ORDER).assign(published=False)


def cost(runs: DataFrame) -> DataFrame:
    """Pretraining cost of each method, a mean over its encoders; hours and speed only if they had the same device."""
    encoders = runs.drop_duplicates([*METHOD, *ENCODER], keep="last").groupby(METHOD, dropna=False)
    found = encoders[["images_seen", "flops", "device_hours", *SPEED]].mean()
    of_a_device = ["device_hours", *SPEED]
    found[of_a_device] = found[of_a_device].where(encoders["device"].nunique(dropna=False) == 1)
    found["device"] = encoders["device"].agg(lambda devices: " and ".join(sorted(devices.dropna().unique())))
    return found.reset_index()


def published() -> DataFrame:
    """Published accuracies, in the order of `published.csv`."""
    import pandas as pd

    with resources.files("semaim.report").joinpath("published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).assign(published=True)


def arranged(*tables: DataFrame) -> DataFrame:
    """Accuracies of several tables, with further columns.

    These are the number of the `row` of their method, the fields of their evaluation, the `metric` in MLflow, the
    `counterpart` (method, size and target) of pretrainings on the data of the published ones, and whether they are
    `shown` in Markdown tables and plots: the headline metrics are.
    """
    import pandas as pd

    accuracies = pd.concat(tables, ignore_index=True).reindex(columns=[*CSV_COLUMNS, "label", "counterpart"])
    online = accuracies["evaluation"].str.startswith("online/")
    accuracies["metric"] = accuracies["evaluation"].where(online, "eval/" + accuracies["evaluation"])
    evaluations = pd.DataFrame(evaluation(metric) for metric in accuracies["metric"])
    accuracies[[*COLUMN_ORDER, "title"]] = evaluations[[*COLUMN_ORDER, "title"]]
    known = accuracies["published"].astype(bool)
    accuracies["counterpart"] = accuracies["counterpart"].where(known, _counterparts(accuracies)).fillna("")
    accuracies["row"] = accuracies.groupby([*METHOD, "published"], dropna=False, sort=False).ngroup()
    accuracies["shown"] = False
    for _, of_data in accuracies.groupby("evaluated_on"):
        accuracies.loc[of_data.index, "shown"] = of_data["metric"].isin(headlines(of_data["metric"].unique()))
    return accuracies


def _counterparts(accuracies: DataFrame) -> Series:
    """Method without its number of segments, size and target of pretrainings; unknown of those on other data."""
    method = accuracies["method"].str.replace(r"-\d+$", "", regex=True)
    found = method + " " + accuracies["model"].str.rpartition("_")[2] + " " + accuracies["target"]
    return found.where(accuracies["pretrained_on"] == PUBLISHED_ON)


def groups(accuracies: DataFrame) -> list[Group]:
    """The methods of a table, told apart by what differs between them, with their scores."""
    rows = accuracies.drop_duplicates("row").set_index("row")
    shown, names = _columns(rows), method_texts(rows)
    apart = {heading: column for heading, column in shown.items() if heading not in UNNAMED}
    compared = [position for position, is_published in enumerate(rows["published"]) if not is_published]
    scores: dict[int, dict[str, Score]] = {row: {} for row in rows.index}
    for each in accuracies.itertuples():
        deviation = None if math.isnan(each.deviation) else each.deviation
        runs = 0 if math.isnan(each.runs) else int(each.runs)
        scores[each.row][each.metric] = Score(each.mean, deviation, runs)
    found = []
    for position, (row, name) in enumerate(zip(rows.index, names, strict=True)):
        same = [each for each in compared if names[each] == name]  # which only needs to be told from these
        words = [f"{heading}={column[position]}" for heading, column in apart.items()
                 if column[position] and len({column[each] for each in same}) > 1]  # fmt: skip
        options = {heading: column[position] for heading, column in shown.items()}
        called = " ".join([name, *words]) if METHOD_NAME in shown or not options else ""
        found.append(Group(options, scores[row], called, rows["counterpart"][row]))
    return found


def _columns(rows: DataFrame) -> dict[str, list[str]]:
    """Values by heading of what differs between the rows of a table."""
    texts = {key: [_text(value) for value in rows[key]] for key in (METHOD_NAME, "options", *OURS, *ALL)}
    texts["flops"] = [_text(value, ".3g") for value in rows["flops"]]
    ours = {heading: texts[key] for key, heading in OURS.items()} | _by_option(texts["options"])
    has_order = rows["permutation"].notna()  # encoders of other projects and published ones have none
    differing = {
        heading: column for heading, column in ours.items()
        if len({value for value, known in zip(column, has_order, strict=True) if known}) > 1
    }  # fmt: skip
    differing |= {heading: texts[key] for key, heading in ALL.items() if len(set(texts[key])) > 1}
    if rows["published"].any():
        differing["source"] = [_source(source) for source in rows["source"]]
    if len(set(texts[METHOD_NAME])) > 1:
        differing.pop(METHOD_NAME, None)  # the choice of method=, whose name this is
        return {METHOD_NAME: texts[METHOD_NAME], **differing}
    return differing


def _text(value: Any, form: str = "g") -> str:
    """A value as a table shows it, numbers in a form; nothing if it is unknown."""
    from pandas import isna

    return "" if isna(value) else f"{value:{form}}" if isinstance(value, float) else str(value)


def _by_option(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by option of texts such as `a=1 b=2`; the texts if they have other words, as of values with spaces."""
    words = [text.split() for text in texts]
    if not all("=" in word for each in words for word in each):
        return {"options": list(texts)}
    options = [dict(word.split("=", 1) for word in each) for each in words]
    return {
        key: [each.get(key, "") for each in options] for key in dict.fromkeys(key for each in options for key in each)
    }


def _source(source: Any) -> str:
    return f"published: {source}" if _text(source) else "ours"


def markdown(accuracies: DataFrame, selection: str, by: str | None = None) -> str:
    """The report in Markdown.

    Args:
        accuracies: with the columns of `arranged`.
        selection: describes the evaluations.
        by: the metric that compares methods; by default the headline metric of each data set.

    Raises:
        UserError: if there is no such metric.
    """
    ours = accuracies[~accuracies["published"]]
    wanted = None if by is None else named_metric(by, set(ours["metric"]))
    parts = ["# Methods and evaluations", f"Accuracy in percent, from {selection}."]
    if ours["metric"].str.startswith("online/").all():
        parts.append("There are no evaluations yet: these are online accuracies, measured at the end of pretraining.")
    for data, table in ours.groupby("evaluated_on", sort=False):
        beside = accuracies[accuracies["published"]] if data == PUBLISHED_ON else accuracies.head(0)
        parts.append(section(str(data), table, beside, wanted))
    if spent := cost_table(ours):
        parts.append(f"## Cost of pretraining\n\n{spent}")
    if accuracies["published"].any() and PUBLISHED_ON not in set(ours["evaluated_on"]):
        published = accuracies[accuracies["published"]]
        parts.append(f"## Published\n\n{Comparison(groups(published), None).markdown('ImageNet-1k')}")
    return "\n\n".join([*parts, "\n".join(f"* {note}" for note in notes(accuracies))]) + "\n"


def section(data: str, ours: DataFrame, published: DataFrame, by: str | None) -> str:
    """The comparison of the methods evaluated on some data, above published results."""
    import pandas as pd

    together = groups(pd.concat([ours, published]))
    count = ours["row"].nunique()
    has_metric = by is not None and by in set(ours["metric"])
    compared = compare(together[:count], by if has_metric else None)
    compared = replace(compared, published=together[count:])
    what = f"{plural(count, 'method')} on {data}"
    if count == 1 and not compared.groups[0].options:
        what = f"{compared.groups[0].name} on {data}"
    return f"## {data}\n\n{compared.markdown(what)}"


def notes(accuracies: DataFrame) -> list[str]:
    """What a reader must know of the tables."""
    found = [
        "A row pools the runs that differ in the seed alone. Of repeated evaluations the newest counts.",
        "report.csv has more: other numbers of neighbours, both features, top-5, images seen, device-hours.",
    ]
    if accuracies["flops"].notna().any():
        found.append(FLOPS_NOTE)
    if accuracies[SPEED].notna().any(axis=None):
        found.append(NOTE)
    if (accuracies["shots"] > 0).any():
        found.append("The deviation of a single few-shot run is over its choices of labelled images.")
    if accuracies["published"].any():
        found += [
            "Published: from the README of the repository named, or the paper, not measured here. A published result "
            "is below ours of the same method, size and target, if there is one.",
            "Published linear probes are listed under the cls token, which MAE and SAIM probe.",
            "aim_base, mae_base and simmim_base have the size of ViT-B; those with _large that of ViT-L.",
        ]
    return found


def csv_text(accuracies: DataFrame) -> str:
    """The report as CSV: a line for each accuracy; unknown values are empty."""
    lines = accuracies.sort_values(["row", *COLUMN_ORDER])[CSV_COLUMNS].astype({"runs": "Int64", "published": str})
    lines["epochs"] = lines["epochs"].map("{:g}".format, na_action="ignore")
    lines["published"] = lines["published"].str.lower()
    return str(lines.to_csv(index=False))
