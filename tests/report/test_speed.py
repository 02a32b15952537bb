"""Speed and memory of pretrainings in the report: in the CSV file, and as a table of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.cli import main
from support.evaluations import Store, after, machine_lines, tables, tags


def pretraining(store: Store, name: str, rate: float, mfu: float, processes: str = "4") -> None:
    place = {"task": "pretrain", "run_folder": f"/home/ada/runs/{name}", "processes": processes}
    measured = {"train/images_per_second": rate, "train/mfu": mfu, "train/peak_memory_gib": 30.5, "train/loss": 1.0}
    store.add(place, measured)


def test_speed_of_the_encoders_pretraining(
    empty_copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretraining(empty_copy, "centre-0", 100.0, 0.1)  # replaced by a later one of the same name
    for seed, rate in enumerate([4000.0, 4400.0]):
        pretraining(empty_copy, f"centre-{seed}", rate, 0.5 + seed / 10)
        evaluated = tags("knn", f"centre-{seed}", seed=seed, pretrained__device="cuda")
        empty_copy.add(evaluated, after(10, 14370, 2.0, knn_10_mean=90.0))
    empty_copy.add(tags("knn", "elsewhere", "raster"), after(10, 14370, 0.5, knn_10_mean=91.0))
    assert main(["report", "--uri", empty_copy.uri, "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    (table,) = tables(text.split("## Cost of pretraining\n")[1])
    assert table == [
        {"pretraining": "SemAIM", "epochs": "10", "FLOPs": "", "device": "cuda",
         "device-hours": "2", "images/s per device": "1050", "MFU": "55%", "peak memory": "30.5 GiB"},
    ]  # fmt: skip
    assert "the tag `peak` of its run" in text
    by_order = {line["permutation"]: line for line in machine_lines(tmp_path)}
    centre = by_order["attention_center"]
    assert (centre["images_per_second_per_device"], centre["peak_memory_gib"]) == ("1050.0", "30.5")
    assert float(centre["mfu"]) == pytest.approx(0.55)
    assert [by_order["raster"][name] for name in ("images_per_second_per_device", "mfu", "peak_memory_gib")] == [""] * 3


def test_without_measured_speed_there_is_no_such_table(
    empty_copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty_copy.add(tags("knn", "old"), after(10, 14370, 0.5, knn_10_mean=91.0))
    assert main(["report", "--uri", empty_copy.uri, "--output", str(tmp_path)]) == 0
    assert "Cost of pretraining" not in capsys.readouterr().out
