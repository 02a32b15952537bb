"""The plots of the report: their points, and the drawn content."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.report.plots import COLOURS, MARKERS, draw, online_points, points
from semaim.report.store import choose, opened, read
from semaim.report.table import markdown, published
from support.evaluations import Store, accuracies, after, tables, tags


def test_points_of_the_plots(store: Store) -> None:
    found = points(accuracies(store, published()), "epochs")
    centre, raster = "SemAIM aim_tiny digits", "ViT-iGPT aim_tiny digits"
    knn = found[found["panel"] == "k-NN 10 mean, digits"].drop(columns="panel").round(2)
    assert knn.fillna(-1).to_numpy().tolist() == [
        [centre, 10, 94.17, 1.26], [raster, 10, 90.04, -1], [raster, 20, 91.0, -1],
    ]  # fmt: skip
    assert found["panel"].value_counts().to_dict() == {
        "k-NN 10 mean, digits": 3, "linear probe cls, digits": 1, "fine-tune, imagenet": 1,
        "1-shot linear probe cls, digits": 1,
    }  # fmt: skip
    hours = points(accuracies(store), "device_hours", of_a_device=True)  # those of CPUs have panels of their own
    assert hours["panel"].value_counts().to_dict() == {
        "k-NN 10 mean, digits, on cpu": 3, "linear probe cls, digits, on cpu": 1, "fine-tune, imagenet, on cuda": 1,
        "1-shot linear probe cls, digits, on cpu": 1,
    }  # fmt: skip
    (on_gpu,) = hours[hours["panel"] == "fine-tune, imagenet, on cuda"].itertuples()
    assert (on_gpu.label, on_gpu.x, on_gpu.y) == ("SemAIM aim_base imagenet", 1234.5, 84.0)


def test_plots_are_written_with_their_text(written: tuple[Path, str]) -> None:
    for name in ("accuracy_by_epochs", "accuracy_by_flops", "accuracy_by_device_hours"):
        assert (written[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawing = (written[0] / f"{name}.svg").read_text()
        # matplotlib draws text as outlines and adds it as comments
        assert "<!-- SemAIM aim_base imagenet -->" in drawing
        assert ("<!-- ViT-iGPT aim_tiny digits -->" in drawing) == (name != "accuracy_by_flops")
        assert f"written: {written[0] / name}.png" in written[1]
    assert "<!-- k-NN 10 mean, digits -->" in (written[0] / "accuracy_by_epochs.svg").read_text()
    by_hours, by_flops = ((written[0] / f"accuracy_by_{cost}.svg").read_text() for cost in ("device_hours", "flops"))
    assert "<!-- device-hours of pretraining -->" in by_hours
    assert "<!-- floating-point operations of pretraining (FLOPs) -->" in by_flops
    assert "<!-- 1e20 -->" in by_flops  # of a logarithmic axis
    assert len({(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(56)}) == 56


def test_without_points_there_is_no_plot(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--uri", store.uri, "--output", str(tmp_path), "--experiment", "big"]) == 0
    assert len(list(tmp_path.glob("accuracy_by_*"))) == 6
    capsys.readouterr()
    options = ["--data", "digits", "--tag", "pretrained.run=random"]
    assert main(["report", "--uri", store.uri, "--output", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    assert "no plot accuracy_by_epochs: no encoder evaluated here says after how many epochs" in said
    assert "no plot accuracy_by_flops: no encoder evaluated here has its FLOPs" in said
    assert "no plot accuracy_by_device_hours: no encoder evaluated here has its hours on one kind of device" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.md"]  # nor an earlier one


def test_hours_of_different_devices_are_not_mixed(empty_copy: Store) -> None:
    for seed, device in enumerate(["cpu", "cuda"]):
        name = tags("knn", f"run-{seed}", seed=seed, pretrained__device=device)
        empty_copy.add(name, after(10, 100.0 * (seed + 1), 5.0, knn_10_cls=50.0))
    table = accuracies(empty_copy)
    assert table[["images_seen", "device_hours", "device"]].fillna(-1).to_numpy().tolist() == [
        [150, -1, "cpu and cuda"]
    ]
    assert points(table, "device_hours", of_a_device=True).empty


def test_accuracy_during_pretraining_is_drawn_by_order(empty_copy: Store, tmp_path: Path) -> None:
    """Two seeds of one order are averaged; a repeated pretraining replaces the earlier one."""
    from mlflow.entities import Metric

    store, knn = empty_copy, {"online/knn_10_mean": [60.0, 70.0, 80.0], "online/linear_cls": [10.0, 20.0, 30.0]}
    knn |= {"online/linear_cls_top5": [50.0, 60.0, 70.0], "online/linear_cls_loss": [2.0, 1.0, 0.5]}  # not drawn

    def pretrain(name: str, more: float) -> None:
        run_id = store.add({"task": "pretrain", "run_folder": f"/runs/{name}"}, {})
        points = [Metric("train/epoch", 2.0, 1, 20), Metric("train/epoch", 4.0, 2, 40)]
        points += [Metric("train/total_flops", 1e10, 1, 20), Metric("train/total_flops", 2e10, 2, 40)]
        points += [
            Metric(key, value + more, 1, 20 * i) for key, values in knn.items() for i, value in enumerate(values)
        ]
        store.client.log_batch(run_id, metrics=points)

    for name, more in (("centre-0", 9.0), ("centre-0", 1.0), ("centre-1", 3.0), ("raster", 5.0), ("alone", 7.0)):
        pretrain(name, more)
    for name, order in (("centre-0", "attention_center"), ("centre-1", "attention_center"), ("raster", "raster")):
        store.add(tags("knn", name, order), after(4, 100, 0.1, knn_10_mean=50.0))
    store.add(tags("knn", "gone"), after(4, 100, 0.1, knn_10_mean=50.0))  # pretrained somewhere else
    with opened(store.uri):
        found = online_points(choose(read([]), []))
    panel, centre, raster = "online k-NN 10 mean, digits", "SemAIM", "ViT-iGPT"
    knn = found[found["panel"] == panel].drop(columns=["panel", "flops"]).fillna(-1).to_numpy().tolist()
    assert knn == [
        *([centre, epoch, accuracy, pytest.approx(2**0.5)] for epoch, accuracy in ((0, 62), (2, 72), (4, 82))),
        *([raster, epoch, accuracy, -1] for epoch, accuracy in ((0, 65), (2, 75), (4, 85))),
    ]
    assert set(found["panel"]) == {panel, "online linear cls, digits"}
    assert len(found) == 2 * 2 * 3
    assert main(["report", "--uri", store.uri, "--output", str(tmp_path), "--no-published"]) == 0
    assert found["flops"].tolist() == [0.0, 1e10, 2e10] * 4
    by_epochs, by_flops = (
        re.findall("<!-- (.*?) -->", (tmp_path / f"accuracy_during_pretraining{cost}.svg").read_text())
        for cost in ("", "_by_flops")
    )
    assert "pretraining epochs" in by_epochs
    assert "floating-point operations of pretraining (FLOPs)" in by_flops
    assert {"SemAIM", "ViT-iGPT"} <= {*by_epochs} & {*by_flops}


def compute(
    store: Store, name: str, method: str, epochs: int, flops: float | None, accuracy: float, seed: int = 0
) -> None:
    """An evaluation of an encoder of these FLOPs of pretraining."""
    found = tags("knn", name, "stochastic", seed, pretrained__method=method, pretrained__model=f"{method.lower()}_tiny")
    cost = {} if flops is None else {"pretrained/flops": flops}
    store.add(found, after(epochs, 1437 * epochs, 0.1, knn_10_mean=accuracy) | cost, seed=seed)


def test_accuracy_by_compute_has_a_line_for_each_method(empty_copy: Store) -> None:
    """Seeds are averaged, lengths are points of a line; runs without FLOPs are missing, and do not count as zero."""
    for seed in (0, 1):
        compute(empty_copy, f"mae-{seed}", "MAE", 10, 2e13, 80.0 + seed, seed)
    compute(empty_copy, "mae-long", "MAE", 40, 8e13, 88.0)
    compute(empty_copy, "saim", "SAIM", 10, 6.1234e13, 85.0)
    compute(empty_copy, "old", "SimMIM", 10, None, 70.0)
    found = points(accuracies(empty_copy), "flops").drop(columns="panel").fillna(-1).to_numpy().tolist()
    (table, _) = tables(markdown(accuracies(empty_copy), "5"))
    assert [row["FLOPs"] for row in table] == ["8e+13", "6.12e+13", "2e+13", ""]
    assert found == [
        ["MAE", 2e13, 80.5, pytest.approx(0.5**0.5)],
        ["MAE", 8e13, 88.0, -1],
        ["SAIM", 6.1234e13, 85.0, -1],
    ]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [((2.0,), None), ((1.0, 4.0), None), ((400.0, 3000.0), {"500", "1000", "2000"}), ((1e19, 4e20), {"1e20", "3e20"}),
     ((1e13, 1e20), {"1e14", "1e16"})],
)  # fmt: skip
def test_a_logarithmic_axis_has_a_few_ticks(tmp_path: Path, values: tuple[float, ...], ticks: set[str] | None) -> None:
    import pandas as pd

    table = pd.DataFrame({"panel": "p", "label": "l", "x": values, "y": 90.0, "deviation": float("nan")})
    draw(table, ["l"], "FLOPs", True, [tmp_path / "plot.svg"])
    texts = re.findall("<!-- (.*?) -->", (tmp_path / "plot.svg").read_text())
    found = texts[: texts.index("FLOPs")]
    assert 2 <= len(found) <= 8
    assert ticks is None or ticks <= set(found)
