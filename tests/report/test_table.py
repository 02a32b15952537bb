"""The tables of the report: seeds are pooled as documented, and published results are included."""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.cli import main
from semaim.report.store import evaluation
from semaim.report.table import CSV_COLUMNS, arranged
from support.evaluations import Store, accuracies, after, machine_lines, named, tables, tags

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


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("eval/knn_10_cls", "k-NN 10 cls"),
        ("eval/linprobe_mean", "linear probe mean"),
        ("eval/finetune", "fine-tune"),
        ("eval/finetune_best", "fine-tune best"),
        ("eval/finetune_ema", "fine-tune ema"),
        ("eval/finetune_top5", "fine-tune top5"),
        ("eval/linprobe_cls_top5", "linear probe cls top5"),
        ("eval/linprobe_cls_loss", None),
        ("eval/knn_20_mean_before_norm", "k-NN 20 mean before norm"),
        ("eval/knn_20_mean_before_norm_top5", "k-NN 20 mean before norm top5"),
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
    what = evaluation(metric)
    assert (what and what.title) == title
    assert what is None or f"eval/{what.evaluation}" == metric


def test_columns_follow_the_order_of_the_protocols() -> None:
    names = ["knn_5_cls_1shot", "finetune_best", "linprobe_cls_1shot", "finetune", "linprobe_mean", "knn_20_cls",
             "knn_5_cls_5shot", "knn_5_mean"]  # fmt: skip
    titles = [what.title for what in sorted(filter(None, (evaluation(f"eval/{name}") for name in names)))]
    assert titles == ["k-NN 5 mean", "k-NN 20 cls", "linear probe mean", "fine-tune", "fine-tune best",
                      "1-shot k-NN 5 cls", "1-shot linear probe cls", "5-shot k-NN 5 cls"]  # fmt: skip


def test_seeds_are_pooled(written: tuple[Path, str]) -> None:
    lines = {(line["method"], line["epochs"], line["evaluation"]): line for line in machine_lines(written[0])}
    centre = lines["attention_center pixels", "10", "knn_10_mean"]
    # Mean of 93, 94 and 95.5, and the square root of (1.1667^2 + 0.1667^2 + 1.3333^2) / 2; the repeated run,
    # unfinished runs, the deleted run and pretraining's own are excluded.
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
    # k = 10 occurs in seven figures of rows (cls and mean), 20 and 30 in two each.
    assert {line["evaluation"] for line in machine_lines(written[0]) if line["evaluation"].startswith("knn")} == {
        "knn_10_cls", "knn_10_mean", "knn_20_cls", "knn_20_mean", "knn_30_cls", "knn_30_mean", "knn_20_mean_5shot",
    }  # fmt: skip
    assert "Of k-NN, tables and plots show k = 10, 20; report.csv has every k." in written[1]
    table = accuracies(store, wanted=(("sweep", "orders"),))  # all equally often: the usual k
    assert set(table["evaluation"][table["shown"]]) == {"knn_20_cls", "knn_20_mean"}
    assert list(arranged(table.head(4))["shown"]) == [True] * 4


def test_top_five_accuracies_are_in_the_csv_file_only(empty_copy: Store, tmp_path: Path) -> None:
    measured = after(10, 14370, 0.02, linprobe_cls=70.0, linprobe_cls_top5=90.0, linprobe_cls_loss=1.25)
    empty_copy.add(tags("linprobe", "centre-0"), measured)
    assert main(["report", "--uri", empty_copy.uri, "--output", str(tmp_path), "--no-published"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "report.csv has top-5 accuracies, too" in text
    ((row,),) = tables(text)
    assert [name for name in row if "linear" in name] == ["linear probe cls"]
    lines = {line["evaluation"]: line["mean"] for line in machine_lines(tmp_path)}
    assert lines == {"linprobe_cls": "70.0", "linprobe_cls_top5": "90.0"}


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
    simmim = "github.com/skyoux/SemAIM (800 epochs in SimMIM's README)"
    assert figures["SimMIM", "ViT-B", "1600", "finetune"]["source"] == simmim
    assert {line["source"] for line in lines} == {"github.com/qiy20/SAIM", "github.com/skyoux/SemAIM", simmim}
    places = [row["source"] == "ours" for row in tables(written[1])[0]]
    assert places == sorted(places, reverse=True)  # ours first


def test_cells_contain_only_known_values(written: tuple[Path, str]) -> None:
    assert list(machine_lines(written[0])[0]) == CSV_COLUMNS
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
    assert main(["report", "--uri", store.uri, "--output", str(tmp_path), "--no-published", *options]) == 0
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
        assert main(["report", "--uri", store.uri, "--output", str(tmp_path), "--data", data]) == 0
        lines = machine_lines(tmp_path)
        assert {line["evaluated_on"] for line in lines} == {data, *expected}
