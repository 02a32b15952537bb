"""Speed and memory of pretrainings in an MLflow store: images per second of a device, MFU, peak memory."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from semaim.core.tables import markdown_table

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns, by MLflow's names.
MEASURED = {
    "metrics.train/images_per_second": "images_per_second_per_device",  # divided by the number of processes
    "metrics.train/mfu": "mfu",
    "metrics.train/peak_memory_gib": "peak_memory_gib",
}
SPEED = list(MEASURED.values())
NOTE = (
    "Of the cost of pretraining, the images per second, the MFU (share of the device's measured peak of matrix "
    "products, the tag `peak` of its run) and the memory are those of one device at the end."
)

FLOPS_NOTE = (
    "FLOPs of pretraining: matrix products of all steps on all devices, forward and backward, with the passes for "
    "maps, targets, teachers and online classifiers, without recomputation."
)


def speed(pretrainings: DataFrame) -> DataFrame:
    """The columns SPEED of pretraining runs, from their last entries; NaN where unknown."""
    import pandas as pd

    found = pretrainings.reindex(columns=list(MEASURED)).rename(columns=MEASURED)
    processes = pd.to_numeric(pretrainings.reindex(columns=["tags.processes"]).squeeze(axis=1), errors="coerce")
    found[SPEED[0]] = found[SPEED[0]] / processes
    return found


def with_speed_of_encoders(evaluations: DataFrame, pretrainings: DataFrame) -> DataFrame:
    """Evaluations with the columns SPEED of the pretraining of their encoders, found by the name of its run folder."""
    folders = pretrainings.reindex(columns=["tags.run_folder"]).squeeze(axis=1).astype(object).fillna("")
    by_name = speed(pretrainings).assign(encoder=[PurePath(folder).name for folder in folders])
    newest = by_name.drop_duplicates("encoder").set_index("encoder")  # MLflow lists the newest first
    encoders = evaluations.reindex(columns=["tags.pretrained.run"]).squeeze(axis=1)
    return evaluations.assign(**{column: encoders.map(newest[column]) for column in SPEED})


def cost_table(accuracies: DataFrame) -> str:
    """What pretraining cost, a row for each of our methods whose compute or speed is known; empty if it is of none."""
    known = accuracies.dropna(subset=["flops", *SPEED], how="all").drop_duplicates("row")
    if known.empty:
        return ""
    head = ("pretraining", "epochs", "FLOPs", "device", "device-hours", "images/s per device", "MFU", "peak memory")
    rows = [
        (
            each.label,
            _number(each.epochs, "{:g}"),
            _number(each.flops, "{:.3g}"),
            each.device,
            _number(each.device_hours, "{:.3g}" if each.device_hours < 1000 else "{:.0f}"),
            _number(each.images_per_second_per_device, "{:.4g}"),
            _number(each.mfu, "{:.0%}"),
            _number(each.peak_memory_gib, "{:.3g} GiB"),
        )
        for each in known.itertuples()
    ]
    return markdown_table([head, *rows], padded=True)


def _number(value: float, form: str) -> str:
    return form.format(value) if value == value else ""
