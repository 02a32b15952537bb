"""Accuracies of the report, a row for each, as Markdown tables and CSV; NaN is an unknown value.

The columns are CSV_COLUMNS, and those that `arranged` adds.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from semaim.core.tables import markdown_table
from semaim.report.store import ENCODER, METHOD, evaluation

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MAX_KNN_COLUMNS = 4  # of a Markdown table; with more numbers of neighbours, it shows one of them
DEFAULT_K = 20
PROCESSORS = {"cpu": " (CPU)", "cuda": " (GPU)"}
CSV_COLUMNS = [
    "method", "model", "permutation", "target", "pretrained_on", "epochs", "images_seen", "device_hours", "device",
    "evaluated_on", "evaluation", "mean", "deviation", "runs", "published", "source",
]  # fmt: skip
ROW_ORDER = ["evaluated_on", "model", "method", "pretrained_on", "epochs"]  # unknown models come last
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
    """Pretraining cost of each method, a mean over its encoders; device-hours only if they had the same device."""
    encoders = runs.drop_duplicates([*METHOD, *ENCODER], keep="last").groupby(METHOD, dropna=False)
    found = encoders[["images_seen", "device_hours"]].mean()
    found["device_hours"] = found["device_hours"].where(encoders["device"].nunique(dropna=False) == 1)
    found["device"] = encoders["device"].agg(lambda devices: " and ".join(sorted(devices.dropna().unique())))
    return found.reset_index()


def published() -> DataFrame:
    """Published accuracies, in the order of `published.csv`."""
    import pandas as pd

    with resources.files("semaim.report").joinpath("published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).assign(published=True)


def arranged(*tables: DataFrame) -> DataFrame:
    """Accuracies of several tables, with further columns.

    These are the number of the `row` of their method, the fields of their evaluation, `gpu_hours` of pretraining, and
    whether they are `shown` in Markdown tables and plots.
    """
    import pandas as pd

    accuracies = pd.concat(tables, ignore_index=True).reindex(columns=[*CSV_COLUMNS, "label"])
    evaluations = pd.DataFrame(evaluation(f"eval/{name}") for name in accuracies["evaluation"])
    accuracies[[*COLUMN_ORDER, "title"]] = evaluations[[*COLUMN_ORDER, "title"]]
    accuracies["gpu_hours"] = accuracies["device_hours"].where(accuracies["device"] == "cuda")
    accuracies["row"] = accuracies.groupby([*METHOD, "published"], dropna=False, sort=False).ngroup()
    few_shot, top1 = accuracies["shots"] > 0, ~accuracies["variant"].str.endswith("top5")
    parts = [shown(accuracies[few_shot & top1]), shown(accuracies[~few_shot & top1])]
    accuracies["shown"] = pd.concat(parts).reindex(accuracies.index, fill_value=False)
    return accuracies


def shown(accuracies: DataFrame) -> Series:
    """Whether accuracies of a table are shown: all, but of a single k if there would be too many columns.

    It is the k that most rows have; of equals, DEFAULT_K or else the smallest.
    """
    k = accuracies["k"]
    rows_by_k = k[k > 0].value_counts()
    if accuracies["title"][k > 0].nunique() <= MAX_KNN_COLUMNS:
        return k >= 0
    return k.isin([0, min(rows_by_k.index, key=lambda k: (-rows_by_k[k], k != DEFAULT_K, k))])


def markdown(accuracies: DataFrame, selection: str) -> str:
    """The report in Markdown; `selection` describes the evaluations."""
    few_shot = accuracies["shots"] > 0
    parts = ["# Methods and evaluations", f"Accuracy in percent, from {selection}."]
    notes = ["Mean ± sample deviation (number of runs, of different seeds); a single run has neither."]
    notes.append("Of an evaluation repeated with the same seed, only the newest counts.")
    if not few_shot.all():
        parts.append(table(accuracies[~few_shot]))
    if few_shot.any():
        parts += ["## Few labels", table(accuracies[few_shot])]
        notes.append("A few-shot figure of a single run: mean ± deviation over that run's choices of labelled images.")
    top5 = accuracies["variant"].str.endswith("top5")
    if not accuracies["shown"][~top5].all():
        k = ", ".join(map(str, sorted(set(accuracies["k"][accuracies["shown"]]) - {0})))
        notes.append(f"Of k-NN, tables and plots show k = {k}; report.csv has every k.")
    if top5.any():
        notes.append("All are top-1 accuracies; report.csv has top-5 accuracies, too.")
    if accuracies["published"].any():
        notes.append("Published: from the README of the repository named, not measured here.")
        notes.append("Published linear probes are listed under the cls token, which MAE and SAIM probe.")
        notes.append("aim_base has the size of ViT-B, aim_large that of ViT-L.")
    return "\n\n".join([*parts, "\n".join(f"* {note}" for note in notes)]) + "\n"


def table(accuracies: DataFrame) -> str:
    """A Markdown table, padded so that it is readable as plain text."""
    columns = accuracies[accuracies["shown"]].sort_values(COLUMN_ORDER)["title"].unique()
    headings = ["method", "model", "pretrained on", "epochs", "images seen", "device-hours", "evaluated on"]
    lines = [[*headings, *columns, "source"]]
    for _, row in accuracies.groupby("row"):
        method = row.iloc[0]
        hours = cell(method["device_hours"], "{:,.1f}" if method["device_hours"] >= 1 else "{:.2g}")
        results = dict(zip(row["title"], map(result, row.itertuples()), strict=True))
        lines.append([
            method["method"], cell(method["model"]), cell(method["pretrained_on"]), cell(method["epochs"], "{:g}"),
            cell(method["images_seen"], "{:,.0f}"), hours + PROCESSORS.get(method["device"], "") if hours else "",
            method["evaluated_on"], *(results.get(column, "") for column in columns),
            f"published: {', '.join(row['source'][row['shown']].unique())}" if method["published"] else "ours",
        ])  # fmt: skip
    return markdown_table(lines, padded=True)


def cell(value: Any, form: str = "{}") -> str:
    """A value as a table shows it; nothing if it is unknown."""
    from pandas import isna

    return "" if isna(value) else form.format(value)


def result(accuracy: Any) -> str:
    """An accuracy as the table shows it, such as "93.6 ± 0.4 (3)"."""
    runs = f" ({accuracy.runs:.0f})" if accuracy.runs > 1 else ""
    return f"{accuracy.mean:.1f}{cell(accuracy.deviation, ' ± {:.1f}')}{runs}"


def csv_text(accuracies: DataFrame) -> str:
    """The report as CSV: a line for each accuracy; unknown values are empty."""
    lines = accuracies.sort_values(["row", *COLUMN_ORDER])[CSV_COLUMNS].astype({"runs": "Int64", "published": str})
    lines["epochs"] = lines["epochs"].map("{:g}".format, na_action="ignore")
    lines["published"] = lines["published"].str.lower()
    return str(lines.to_csv(index=False))
