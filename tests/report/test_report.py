"""The report shows what MLflow holds: pooled as it says, beside what papers published, and without touching the store.

The store is a real SQLite file, made by MLflow's own client with the tags and metrics that evaluations write.
"""

from __future__ import annotations

import csv
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from semaim.errors import UserError
from semaim.report import report
from semaim.report import store as report_store
from semaim.report.curves import curves
from semaim.report.table import COLOURS, CSV_COLUMNS, MARKERS, Row, by_epochs, by_gpu_hours, columns, points
from semaim.tracking.store import SQLITE
from support.commands import run

REPORT = (sys.executable, "-m", "semaim.report.report")
# Published accuracies by method, model and epochs: after fine-tuning, and of a linear probe.
PUBLISHED = {
    ("DINO", "ViT-B", "800"): ("82.8", ""),
    ("BEiT", "ViT-B", "800"): ("83.2", "37.6"),
    ("BEiT", "ViT-L", "800"): ("85.2", ""),
    ("MAE", "ViT-B", "1600"): ("83.6", "67.8"),
    ("MAE", "ViT-L", "1600"): ("85.9", ""),
    ("SimMIM", "ViT-B", "1600"): ("83.8", "56.7"),
    ("LocalMIM", "ViT-B", "1600"): ("84.0", ""),
    ("HPM", "ViT-B", "800"): ("84.2", ""),
    ("HPM", "ViT-L", "800"): ("85.8", ""),
    ("iGPT", "iGPT-L", ""): ("72.6", ""),
    ("ViT-iGPT", "ViT-B", "300"): ("82.7", "20.4"),
    ("RandSAC", "ViT-B", "1600"): ("83.9", ""),
    ("SAIM", "ViT-B", "300"): ("83.6", "58.5"),
    ("SAIM", "ViT-B", "800"): ("83.9", "62.5"),
    ("SemAIM", "ViT-B", "400"): ("83.8", ""),
    ("SemAIM", "ViT-L", "400"): ("85.5", ""),
    ("SemAIM", "ViT-B", "800"): ("84.1", ""),
    ("SemAIM", "ViT-L", "800"): ("85.8", ""),
    ("SemAIM* (CLIP target)", "ViT-B", "800"): ("85.3", ""),
    ("SemAIM* (CLIP target)", "ViT-L", "800"): ("86.5", ""),
}


class Store:
    """An MLflow store to put runs into; each starts a second after the one before, if nothing else is said."""

    def __init__(self, path: Path) -> None:
        from mlflow import MlflowClient

        self.path = path
        self.uri = f"{SQLITE}{path}"
        self.client = MlflowClient(self.uri)
        self.seconds = 100

    def experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self.client.create_experiment(name))

    def add(
        self, tags: dict[str, str], metrics: dict[str, float], *, seed: int = 0, status: str = "FINISHED",
        experiment: str = "small", seconds: int | None = None,
    ) -> str:  # fmt: skip
        """A run; returns its id."""
        from mlflow.entities import Metric, Param

        self.seconds += 1
        start = 1000 * (self.seconds if seconds is None else seconds)
        run = self.client.create_run(self.experiment(experiment), start_time=start, tags=tags)
        logged = [Metric(name, value, start, 0) for name, value in metrics.items()]
        self.client.log_batch(run.info.run_id, metrics=logged, params=[Param("seed", str(seed))])
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    def contents(self) -> list[Any]:
        """How many rows each table has."""
        with sqlite3.connect(self.path) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
            return [(name, database.execute(f"SELECT COUNT(*) FROM {name}").fetchone()) for (name,) in tables]


def tags(task: str, run: str, order: str = "attention_center", seed: int = 0, **others: str) -> dict[str, str]:
    """Tags of an evaluation of a small encoder on digits; those with a dot are written with two underscores."""
    usual = {"pretrained.model": "aim_tiny", "pretrained.permutation": order, "pretrained.target": "pixels"}
    more = {"pretrained.data": "digits", "pretrained.device": "cpu", "pretrained.seed": str(seed)}
    changed = {key.replace("__", "."): value for key, value in others.items()}
    return {"task": task, "data": "digits", "pretrained.run": run, **usual, **more, **changed}


def after(epochs: float, images: float, hours: float, **accuracies: float) -> dict[str, float]:
    """Metrics of an evaluation: what pretraining cost, and accuracies in percent."""
    cost = {"pretrained/epochs": epochs, "pretrained/images_seen": images, "pretrained/device_hours": hours}
    return cost | {f"eval/{name}": value for name, value in accuracies.items()}


def fill_with_digits(store: Store) -> None:
    """Three seeds of one method, two lengths of another, a random encoder."""
    for seed, accuracy in enumerate([93.0, 94.0, 95.5]):
        knn = {"knn_10_cls": 90.0 + seed, "knn_10_mean": accuracy, "knn_20_mean": 92.0, "knn_30_mean": 91.0}
        metrics = after(10, 14370, (seed + 2) / 100, **knn, knn_20_cls=89.0, knn_30_cls=88.0)
        store.add(tags("knn", f"centre-{seed}", seed=seed, sweep="orders"), metrics)
    again = tags("knn", "centre-0")
    store.add(again, after(10, 14370, 0.02, knn_10_mean=10.0), seconds=50)  # made before, so the newer one counts
    for status in ("RUNNING", "FAILED", "KILLED"):
        store.add(again, after(10, 14370, 0.02, knn_10_mean=1.0), status=status)
    deleted = store.add(again, after(10, 14370, 0.02, knn_10_mean=2.0))
    store.client.delete_run(deleted)
    online = tags("pretrain", "centre-0")
    store.add(online, {"eval/knn_10_mean": 3.0})
    for seed, accuracy in enumerate([95.0, 96.0]):
        store.add(tags("linprobe", "centre-0"), after(10, 14370, 0.02, linprobe_cls=accuracy), seed=seed)
    store.add(tags("knn", "raster", "raster"), after(10, 14370, 0.5, knn_10_mean=90.04))
    store.add(tags("knn", "raster", "raster"), after(20, 28740, 1.25, knn_10_mean=91.0))
    shots = {"knn_20_mean_5shot": 71.2, "knn_20_mean_5shot_std": 1.34, "linprobe_cls_1shot": 40.0}
    store.add(tags("fewshot", "centre-0"), after(10, 14370, 0.02, **shots))
    for seed, accuracy in enumerate([60.0, 62.0]):
        shots = {"knn_20_mean_5shot": accuracy, "knn_20_mean_5shot_std": 9.0}
        store.add(tags("fewshot", "raster", "raster"), after(10, 14370, 0.5, **shots), seed=seed)
    for seed, accuracy in enumerate([81.0, 79.0]):
        random = {"task": "knn", "data": "digits", "pretrained.run": "random", "pretrained.model": "aim_tiny"}
        store.add(random | {"pretrained.seed": str(seed)}, {"eval/knn_10_mean": accuracy})


def fill_with_imagenet(store: Store) -> None:
    """A large encoder on GPUs, and somebody else's."""
    large = {"data": "imagenet", "pretrained__data": "imagenet", "pretrained__device": "cuda"}
    accuracies = {"finetune": 84.0, "finetune_best": 84.2, "finetune_ema": 84.3}
    base = tags("finetune", "base", pretrained__model="aim_base", **large)
    store.add(base, after(800, 1024934400, 1234.5, **accuracies), experiment="big")
    foreign = {"task": "finetune", "data": "imagenet", "pretrained.run": "timm:vit_base_patch16_224.mae"}
    store.add(foreign, {"eval/finetune": 83.4}, experiment="big")
    store.add(foreign | {"pretrained.run": "other.pth"}, {"eval/finetune": 70.0}, experiment="big")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that no test changes."""
    store = Store(tmp_path_factory.mktemp("store") / "mlflow.db")
    fill_with_digits(store)
    fill_with_imagenet(store)
    return store


@pytest.fixture
def empty_copy(store: Store, tmp_path: Path) -> Store:
    """A store without runs: making a new one takes seconds."""
    with sqlite3.connect(shutil.copy(store.path, tmp_path / "mlflow.db")) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    return Store(tmp_path / "mlflow.db")


@pytest.fixture(scope="module")
def written(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a report of everything, and what the screen said."""
    folder = tmp_path_factory.mktemp("written") / "a" / "report"
    with redirect_stdout(StringIO()) as said:
        assert report.main(["--uri", store.uri, "--output", str(folder)]) == 0
    return folder, said.getvalue()


def rows(store: Store, *experiments: str, wanted: tuple[tuple[str, str], ...] = ()) -> list[Row]:
    return report.pool(report.choose(report.read(store.uri, experiments), wanted))


def machine_lines(folder: Path) -> list[dict[str, str]]:
    with open(folder / "report.csv", newline="") as file:
        return list(csv.DictReader(file))


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text: for each its rows, cells by column."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[dict(zip(t[0], line, strict=True)) for line in t[2:]] for t in found if t]


def named(table: list[dict[str, str]], method: str, epochs: str) -> dict[str, str]:
    (row,) = [row for row in table if (row["method"], row["epochs"], row["source"]) == (method, epochs, "ours")]
    return row


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with exit code 2 and says nothing else."""
    assert report.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("eval/knn_10_cls", "k-NN 10 cls"),
        ("eval/linprobe_mean", "linear probe mean"),
        ("eval/finetune", "fine-tune"),
        ("eval/finetune_best", "fine-tune best"),
        ("eval/finetune_ema", "fine-tune ema"),
        ("eval/knn_20_mean_5shot", "5-shot k-NN 20 mean"),
        ("eval/linprobe_cls_10shot", "10-shot linear probe cls"),
        ("eval/knn_20_mean_5shot_std", None),
        ("eval/knn_20", None),
        ("eval/finetune_loss", None),
        ("online/knn_10_cls", None),
        ("eval/knn_10_cls/extra", None),
    ],
)
def test_metrics_and_their_titles(metric: str, title: str | None) -> None:
    what = report.evaluation(metric)
    assert (what and what.title) == title
    assert what is None or f"eval/{what.name}" == metric


def test_columns_stand_in_the_order_of_the_protocols() -> None:
    names = ["knn_5_cls_1shot", "finetune_best", "linprobe_cls_1shot", "finetune", "linprobe_mean", "knn_20_cls",
             "knn_5_cls_5shot", "knn_5_mean"]  # fmt: skip
    titles = [what.title for what in sorted(filter(None, (report.evaluation(f"eval/{name}") for name in names)))]
    assert titles == ["k-NN 5 mean", "k-NN 20 cls", "linear probe mean", "fine-tune", "fine-tune best",
                      "1-shot k-NN 5 cls", "1-shot linear probe cls", "5-shot k-NN 5 cls"]  # fmt: skip


def test_seeds_are_pooled(written: tuple[Path, str]) -> None:
    lines = {(line["method"], line["epochs"], line["evaluation"]): line for line in machine_lines(written[0])}
    centre = lines["attention_center pixels", "10", "knn_10_mean"]
    # Mean of 93, 94 and 95.5, and the square root of (1.1667^2 + 0.1667^2 + 1.3333^2) / 2; no trace of the run made
    # again, of those that did not finish, of the deleted one and of pretraining's own.
    assert float(centre["mean"]) == pytest.approx(94.1666667)
    assert float(centre["deviation"]) == pytest.approx(1.2583057)
    assert float(centre["device_hours"]) == pytest.approx(0.03)
    texts = {key: value for key, value in centre.items() if key not in ("mean", "deviation", "device_hours")}
    assert texts == {
        "method": "attention_center pixels", "model": "aim_tiny", "permutation": "attention_center",
        "target": "pixels", "pretrained_on": "digits", "epochs": "10", "images_seen": "14370.0", "device": "cpu",
        "evaluated_on": "digits", "evaluation": "knn_10_mean", "runs": "3", "published": "false", "source": "",
    }  # fmt: skip
    constant = lines["attention_center pixels", "10", "knn_20_mean"]
    assert (constant["mean"], constant["deviation"], constant["runs"]) == ("92.0", "0.0", "3")
    probe = lines["attention_center pixels", "10", "linprobe_cls"]  # two seeds of the probe, one encoder
    assert (probe["mean"], float(probe["deviation"]), probe["runs"]) == ("95.5", pytest.approx(0.5**0.5), "2")
    random = lines["random", "", "knn_10_mean"]  # two encoders of one name
    assert (random["mean"], float(random["deviation"]), random["runs"]) == ("80.0", pytest.approx(2**0.5), "2")
    assert [random[name] for name in ("permutation", "target", "images_seen", "device_hours", "device")] == [""] * 5


def test_lengths_of_pretraining_are_rows_of_their_own(written: tuple[Path, str]) -> None:
    raster = [line for line in machine_lines(written[0]) if line["method"] == "raster pixels"]
    shown = {(line["epochs"], line["device_hours"]): (line["mean"], line["deviation"], line["runs"])
             for line in raster if line["evaluation"] == "knn_10_mean"}  # fmt: skip
    assert shown == {("10", "0.5"): ("90.04", "", "1"), ("20", "1.25"): ("91.0", "", "1")}


def test_few_shot_deviation(written: tuple[Path, str]) -> None:
    few = {
        (line["method"], line["evaluation"]): line for line in machine_lines(written[0]) if "shot" in line["evaluation"]
    }
    assert set(few) == {
        ("attention_center pixels", "knn_20_mean_5shot"),
        ("attention_center pixels", "linprobe_cls_1shot"),
        ("raster pixels", "knn_20_mean_5shot"),
    }
    own = few["attention_center pixels", "knn_20_mean_5shot"]
    assert (own["mean"], own["deviation"], own["runs"]) == ("71.2", "1.34", "1")
    over_runs = few["raster pixels", "knn_20_mean_5shot"]
    assert (over_runs["mean"], float(over_runs["deviation"])) == ("61.0", pytest.approx(2**0.5))
    _, table = tables(written[1])
    assert named(table, "attention_center pixels", "10")["5-shot k-NN 20 mean"] == "71.2 ± 1.3"
    assert named(table, "attention_center pixels", "10")["1-shot linear probe cls"] == "40.0"
    assert named(table, "raster pixels", "10")["5-shot k-NN 20 mean"] == "61.0 ± 1.4 (2)"
    assert named(table, "raster pixels", "10")["1-shot linear probe cls"] == ""
    assert len(table) == 2


def test_markdown_rows(written: tuple[Path, str]) -> None:
    table, _ = tables(written[1])
    assert list(table[0]) == [
        "method", "model", "pretrained on", "epochs", "images seen", "device-hours", "evaluated on", "k-NN 10 cls",
        "k-NN 10 mean", "linear probe cls", "fine-tune", "fine-tune best", "fine-tune ema", "source",
    ]  # fmt: skip
    ours = [(row["model"], row["method"], row["epochs"]) for row in table if row["source"] == "ours"]
    assert ours == [
        ("aim_tiny", "attention_center pixels", "10"), ("aim_tiny", "random", ""), ("aim_tiny", "raster pixels", "10"),
        ("aim_tiny", "raster pixels", "20"), ("aim_base", "attention_center pixels", "800"), ("", "other.pth", ""),
        ("", "timm:vit_base_patch16_224.mae", ""),
    ]  # fmt: skip
    assert list(named(table, "attention_center pixels", "10").values()) == [
        "attention_center pixels", "aim_tiny", "digits", "10", "14,370", "0.03 (CPU)", "digits", "91.0 ± 1.0 (3)",
        "94.2 ± 1.3 (3)", "95.5 ± 0.7 (2)", "", "", "", "ours",
    ]  # fmt: skip
    assert list(named(table, "attention_center pixels", "800").values()) == [
        "attention_center pixels", "aim_base", "imagenet", "800", "1,024,934,400", "1,234.5 (GPU)", "imagenet", "", "",
        "", "84.0", "84.2", "84.3", "ours",
    ]  # fmt: skip
    foreign = named(table, "timm:vit_base_patch16_224.mae", "")
    assert {key: value for key, value in foreign.items() if value} == {
        "method": "timm:vit_base_patch16_224.mae", "evaluated on": "imagenet", "fine-tune": "83.4", "source": "ours",
    }  # fmt: skip
    assert (written[0] / "report.md").read_text() in written[1]


def test_many_knn_columns_are_cut_in_markdown_only(store: Store, written: tuple[Path, str]) -> None:
    # k = 10 stands in seven figures of rows (cls and mean), 20 and 30 in two each.
    assert {line["evaluation"] for line in machine_lines(written[0]) if line["evaluation"].startswith("knn")} == {
        "knn_10_cls", "knn_10_mean", "knn_20_cls", "knn_20_mean", "knn_30_cls", "knn_30_mean", "knn_20_mean_5shot",
    }  # fmt: skip
    assert "Of k-NN, tables and plots show k = 10, 20; report.csv has every k." in written[1]
    (row,) = rows(store, wanted=(("sweep", "orders"),))  # all equally often: the usual k
    assert [what.name for what in columns([row], few_shot=False)] == ["knn_20_cls", "knn_20_mean"]
    four = Row(row.method, None, None, "", dict(list(row.figures.items())[:4]), published=False)
    assert len(columns([four], few_shot=False)) == 4


def test_published_figures_are_exact(written: tuple[Path, str]) -> None:
    table = [row for row in tables(written[1])[0] if row["source"] != "ours"]
    shown = {(row["method"], row["model"], row["epochs"]): (row["fine-tune"], row["linear probe cls"]) for row in table}
    assert shown == PUBLISHED
    assert len(table) == len(PUBLISHED)
    for row in table:
        assert row["source"].startswith("published: github.com/")
        assert row["evaluated on"] == "ImageNet-1k"
        empty = ("images seen", "device-hours", "k-NN 10 cls", "k-NN 10 mean", "fine-tune best", "fine-tune ema")
        assert [row[name] for name in empty] == [""] * 6
    lines = [line for line in machine_lines(written[0]) if line["published"] == "true"]
    figures = {(line["method"], line["model"], line["epochs"], line["evaluation"]): line for line in lines}
    assert len(lines) == len(figures) == sum(bool(figure) for pair in PUBLISHED.values() for figure in pair) == 26
    for (*key, name), line in figures.items():
        assert line["mean"] == PUBLISHED[key[0], key[1], key[2]][("finetune", "linprobe_cls").index(name)]
        assert [line[empty] for empty in ("images_seen", "device_hours", "device", "deviation", "runs")] == [""] * 5
    from_saim = {(key[0], name) for (*key, name), line in figures.items() if line["source"] == "github.com/qiy20/SAIM"}
    probed = {(key[0], name) for (*key, name) in figures if name == "linprobe_cls"}
    assert from_saim == probed | {("SAIM", "finetune"), ("iGPT", "finetune")}
    assert {line["source"] for line in lines} == {"github.com/qiy20/SAIM", "github.com/skyoux/SemAIM"}
    places = [row["source"] == "ours" for row in tables(written[1])[0]]
    assert places == sorted(places, reverse=True)  # ours first


def test_nothing_but_known_values_stands_in_a_cell(written: tuple[Path, str]) -> None:
    assert tuple(machine_lines(written[0])[0]) == CSV_COLUMNS
    cells = [cell for table in tables(written[1]) for row in table for cell in row.values()]
    assert "" in cells
    values = {value for line in machine_lines(written[0]) for value in line.values()}
    assert not {"-", "None", "nan", "0"} & {*cells, *values}


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        (("--experiment", "big"), {"attention_center pixels", "other.pth", "timm:vit_base_patch16_224.mae"}),
        (("--experiment", "big", "--experiment", "small", "--data", "digits"),
         {"attention_center pixels", "raster pixels", "random"}),
        (("--tag", "sweep=orders"), {"attention_center pixels"}),
        (("--tag", "pretrained.model=aim_tiny", "--tag", "task=fewshot", "--tag", "pretrained.permutation=raster"),
         {"raster pixels"}),
        (("--data", "imagenet", "--tag", "pretrained.device=cuda"), {"attention_center pixels"}),
    ],
)  # fmt: skip
def test_filters(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], methods: set[str]
) -> None:
    assert report.main(["--uri", store.uri, "--output", str(tmp_path), "--no-published", *options]) == 0
    lines = machine_lines(tmp_path)
    assert {line["method"] for line in lines} == methods
    assert {line["published"] for line in lines} == {"false"}
    said = capsys.readouterr().out
    assert "ublished" not in said
    assert all(value in said for value in options[1::2])
    if "sweep=orders" in options:
        assert {line["evaluation"].split("_")[0] for line in lines} == {"knn"}


def test_published_figures_go_with_their_data(store: Store, tmp_path: Path) -> None:
    for data, expected in (("digits", set()), ("imagenet", {"ImageNet-1k"})):
        assert report.main(["--uri", store.uri, "--output", str(tmp_path), "--data", data]) == 0
        lines = machine_lines(tmp_path)
        assert {line["evaluated_on"] for line in lines} == {data, *expected}


def test_points_of_the_plots(store: Store) -> None:
    found = points(rows(store) + report.published(), by_epochs)
    centre, raster = "aim_tiny attention_center pixels digits", "aim_tiny raster pixels digits"
    knn = [(p.label, p.x, round(p.y, 2), p.deviation and round(p.deviation, 2))
           for p in found if p.panel == "k-NN 10 mean, digits"]  # fmt: skip
    assert knn == [(centre, 10, 94.17, 1.26), (raster, 10, 90.04, None), (raster, 20, 91.0, None)]
    panels = {panel: sum(point.panel == panel for point in found) for panel in {point.panel for point in found}}
    assert panels == {
        "k-NN 10 cls, digits": 1, "k-NN 10 mean, digits": 3, "linear probe cls, digits": 1, "fine-tune, imagenet": 1,
        "fine-tune best, imagenet": 1, "fine-tune ema, imagenet": 1, "1-shot linear probe cls, digits": 1,
        "5-shot k-NN 20 mean, digits": 2,
    }  # fmt: skip
    on_gpu = points(rows(store), by_gpu_hours)  # not the hours of CPUs
    assert [(p.panel, p.label, p.x, p.y) for p in on_gpu] == [
        (f"fine-tune{which}, imagenet", "aim_base attention_center pixels imagenet", 1234.5, accuracy)
        for which, accuracy in (("", 84.0), (" best", 84.2), (" ema", 84.3))
    ]


def test_plots_are_written_and_say_what_they_show(written: tuple[Path, str]) -> None:
    for name in ("accuracy_by_epochs", "accuracy_by_gpu_hours"):
        assert (written[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawing = (written[0] / f"{name}.svg").read_text()
        # matplotlib draws text as outlines and notes it in comments
        assert "<!-- aim_base attention_center pixels imagenet -->" in drawing
        assert ("<!-- aim_tiny raster pixels digits -->" in drawing) == (name == "accuracy_by_epochs")
        assert f"written: {written[0] / name}.png" in written[1]
    assert "<!-- k-NN 10 mean, digits -->" in (written[0] / "accuracy_by_epochs.svg").read_text()
    assert "<!-- GPU-hours of pretraining -->" in (written[0] / "accuracy_by_gpu_hours.svg").read_text()
    assert len({(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(56)}) == 56


def test_without_points_there_is_no_plot(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--uri", store.uri, "--output", str(tmp_path), "--experiment", "big"]) == 0
    assert len(list(tmp_path.glob("accuracy_by_*"))) == 4
    capsys.readouterr()
    options = ["--data", "digits", "--tag", "pretrained.run=random"]
    assert report.main(["--uri", store.uri, "--output", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    assert "no plot accuracy_by_epochs: no encoder evaluated here says after how many epochs" in said
    assert "no plot accuracy_by_gpu_hours: no encoder evaluated here was pretrained on a GPU" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.md"]  # nor one from before


def test_hours_of_different_devices_are_not_mixed(empty_copy: Store) -> None:
    for seed, device in enumerate(["cpu", "cuda"]):
        name = tags("knn", f"run-{seed}", seed=seed, pretrained__device=device)
        empty_copy.add(name, after(10, 100.0 * (seed + 1), 5.0, knn_10_cls=50.0))
    (row,) = rows(empty_copy)
    assert (row.images_seen, row.device_hours, row.device) == (150.0, None, "cpu and cuda")
    assert points([row], by_gpu_hours) == []


def test_many_runs_are_read_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {run.info.run_id for run in report.read(store.uri, [])}
    assert len(everything) == 19
    monkeypatch.setattr(report_store, "PAGE", 2)
    paged = [run.info.run_id for run in report.read(store.uri, [])]
    assert len(paged) == 19
    assert set(paged) == everything


def test_store_is_not_touched(store: Store, tmp_path: Path) -> None:
    before = store.path.read_bytes(), store.contents(), sorted(store.path.parent.iterdir())
    assert report.main(["--uri", store.uri, "--output", str(tmp_path)]) == 0
    assert (store.path.read_bytes(), store.contents(), sorted(store.path.parent.iterdir())) == before


def test_missing_file_is_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(capsys)
    assert f"--uri=sqlite:///mlflow.db: there is no file {tmp_path}/mlflow.db" in message
    assert "Traceback" not in message
    fails(capsys, "--uri", f"{SQLITE}{tmp_path}/no/such/folder.db")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database" * 1000)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    for name in ("empty.db", "text.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        message = fails(capsys, "--uri", f"{SQLITE}{tmp_path / name}", "--output", str(tmp_path / "report"))
        assert f"--uri={SQLITE}{tmp_path / name} cannot be read as an MLflow store" in message
        assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = '0a8213491aaa'",
        "DELETE FROM experiments WHERE name = 'Default'",  # which MLflow puts into every store that it opens
    ],
)
def test_store_that_needs_changing_is_not_changed(
    empty_copy: Store, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    with sqlite3.connect(empty_copy.path) as database:
        database.execute(change)
    before = empty_copy.path.read_bytes()
    assert f"mlflow db upgrade {empty_copy.uri}" in fails(capsys, "--uri", empty_copy.uri)
    assert empty_copy.path.read_bytes() == before


def test_names_with_odd_characters(store: Store, tmp_path: Path) -> None:
    odd = tmp_path / "a b?mode=rw#100%.db"
    shutil.copy(store.path, odd)
    assert len(report.read(f"{SQLITE}{odd}", ["big"])) == 3


@pytest.mark.parametrize("uri", ["mlflow.db", "file:///tmp/mlruns", "sqlite://mlflow.db", ""])
def test_addresses_that_are_no_store(uri: str) -> None:
    with pytest.raises(UserError, match=r"is no MLflow store: give sqlite:///<file> or http://<server>"):
        report_store.readable(uri)


def test_server_out_of_reach(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run([*REPORT, "--uri", uri], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --uri={uri} cannot be read as an MLflow store (")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_command_in_a_folder(store: Store, tmp_path: Path) -> None:
    shutil.copy(store.path, tmp_path / "mlflow.db")
    done = run(tmp_path, "--experiment", "big", launcher=REPORT)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("# Methods and evaluations\n")
    assert "written: report/report.md\n" in done.stdout
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "accuracy_by_epochs.png", "accuracy_by_epochs.svg", "accuracy_by_gpu_hours.png", "accuracy_by_gpu_hours.svg",
        "report.csv", "report.md",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "report"]


def test_mistakes_are_named(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--uri", store.uri, "--output", str(tmp_path / "report"))
    unknown = fails(capsys, *here, "--experiment", "big", "--experiment", "bog")
    assert "--experiment=bog does not exist; there are: Default, big, small" in unknown
    for tag in ("sweep", "=orders", ""):
        assert f"--tag={tag} must be key=value" in fails(capsys, *here, "--tag", tag)
    assert "no finished evaluation fits --data=stl10; there are: digits, imagenet" in fails(
        capsys, *here, "--data", "stl10"
    )
    assert "fits --tag=sweep=sizes; there are: orders" in fails(capsys, *here, "--tag", "sweep=sizes")
    assert "there are: none with this tag" in fails(capsys, *here, "--tag", "swoop=orders")
    assert not (tmp_path / "report").exists()
    (tmp_path / "file").touch()
    assert report.main(["--uri", store.uri, "--output", str(tmp_path / "file")]) == 2
    assert f"error: --output={tmp_path / 'file'} cannot be written: " in capsys.readouterr().err


def test_without_evaluations_it_says_how_to_make_one(empty_copy: Store, capsys: pytest.CaptureFixture[str]) -> None:
    how = "python -m semaim.run task=knn checkpoint=runs/<name>"
    assert f"there is no evaluation here yet; make one with: {how}" in fails(capsys, "--uri", empty_copy.uri)
    empty_copy.add({"task": "pretrain"}, {"train/loss": 1.0, "eval/knn_10_cls": 50.0})
    empty_copy.add({"task": "visualize", "pretrained.run": "centre-0"}, {"seconds": 1.0})
    assert "there is no evaluation here yet" in fails(capsys, "--uri", empty_copy.uri)
    empty_copy.add(tags("knn", "centre-0"), {"eval/knn_10_cls": 50.0}, status="RUNNING")
    message = fails(capsys, "--uri", empty_copy.uri)
    assert f"of 1 evaluations here none is finished (RUNNING); make one with: {how}" in message


def test_accuracy_during_pretraining_is_drawn_by_order(empty_copy: Store, tmp_path: Path) -> None:
    """Two seeds of one order become their mean; a pretraining made anew counts in place of the one before it."""
    from mlflow.entities import Metric

    store, knn = empty_copy, {"online/knn_10_mean": [60.0, 70.0, 80.0], "online/linear_cls": [10.0, 20.0, 30.0]}

    def pretrain(name: str, more: float) -> None:
        run_id = store.add({"task": "pretrain", "mlflow.runName": name}, {})
        points = [Metric("train/epoch", 2.0, 1, 20), Metric("train/epoch", 4.0, 2, 40)]
        points += [
            Metric(key, value + more, 1, 20 * i) for key, values in knn.items() for i, value in enumerate(values)
        ]
        store.client.log_batch(run_id, metrics=points)

    for name, more in (("centre-0", 9.0), ("centre-0", 1.0), ("centre-1", 3.0), ("raster", 5.0), ("alone", 7.0)):
        pretrain(name, more)
    for name, order in (("centre-0", "attention_center"), ("centre-1", "attention_center"), ("raster", "raster")):
        store.add(tags("knn", name, order), after(4, 100, 0.1, knn_10_mean=50.0))
    store.add(tags("knn", "gone"), after(4, 100, 0.1, knn_10_mean=50.0))  # pretrained somewhere else
    found = curves(store.uri, report.choose(report.read(store.uri, []), []))
    panel, centre, raster = "online k-NN 10 mean, digits", "aim_tiny attention_center pixels digits", "raster"
    assert [point for point in found if (point.panel, point.label) == (panel, centre)] == [
        (panel, centre, epoch, accuracy, pytest.approx(2**0.5)) for epoch, accuracy in ((0, 62), (2, 72), (4, 82))
    ]
    assert [(p.x, p.y, p.deviation) for p in found if p.panel == panel and raster in p.label] == [
        (0.0, 65.0, None),
        (2.0, 75.0, None),
        (4.0, 85.0, None),
    ]
    assert {point.panel for point in found} == {panel, "online linear cls, digits"}
    assert len(found) == 2 * 2 * 3
    assert report.main(["--uri", store.uri, "--output", str(tmp_path), "--no-published"]) == 0
    assert (tmp_path / "accuracy_during_pretraining.svg").stat().st_size > 1000
