"""The tables of the report: seeds are pooled as documented, and published results are included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.report.store import evaluation
from semaim.report.table import CSV_COLUMNS, markdown, published
from support.evaluations import Store, accuracies, after, fails, machine_lines, tables, tags

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
    ("RandSAC", "ViT-B", ""): ("", "68.3"),
    ("SAIM", "ViT-B", "300"): ("83.6", "58.5"),
    ("SAIM", "ViT-B", "800"): ("83.9", "62.5"),
    ("SemAIM", "ViT-B", "400"): ("83.8", ""),
    ("SemAIM", "ViT-L", "400"): ("85.5", ""),
    ("SemAIM", "ViT-B", "800"): ("84.1", ""),
    ("SemAIM", "ViT-L", "800"): ("85.8", ""),
    ("SemAIM* (CLIP target)", "ViT-B", "800"): ("85.3", ""),
    ("SemAIM* (CLIP target)", "ViT-L", "800"): ("86.5", ""),
}


FEW = "eval/linprobe_cls_1shot"


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
        ("knn_10_cls", None),
        ("online/knn_10_cls", "online k-NN 10 cls"),
        ("online/linear_mean_top5", "online linear mean top5"),
        ("online/linear_mean_loss", None),
        ("eval/knn_10_cls/extra", None),
    ],
)
def test_metrics_and_their_titles(metric: str, title: str | None) -> None:
    what = evaluation(metric)
    assert (what and what.title) == title
    assert what is None or what.evaluation == metric.removeprefix("eval/")


def test_columns_follow_the_order_of_the_protocols() -> None:
    names = ["knn_5_cls_1shot", "finetune_best", "linprobe_cls_1shot", "finetune", "linprobe_mean", "knn_20_cls",
             "knn_5_cls_5shot", "knn_5_mean"]  # fmt: skip
    titles = [what.title for what in sorted(filter(None, (evaluation(f"eval/{name}") for name in names)))]
    assert titles == ["k-NN 5 mean", "k-NN 20 cls", "linear probe mean", "fine-tune", "fine-tune best",
                      "1-shot k-NN 5 cls", "1-shot linear probe cls", "5-shot k-NN 5 cls"]  # fmt: skip


def test_seeds_are_pooled(written: tuple[Path, str]) -> None:
    lines = {(line["method"], line["epochs"], line["evaluation"]): line for line in machine_lines(written[0])}
    centre = lines["SemAIM", "10", "knn_10_mean"]
    # Mean of 93, 94 and 95.5, and the square root of (1.1667^2 + 0.1667^2 + 1.3333^2) / 2; the repeated run,
    # unfinished runs, the deleted run and pretraining's own are excluded.
    assert float(centre["mean"]) == pytest.approx(94.1666667)
    assert float(centre["deviation"]) == pytest.approx(1.2583057)
    assert float(centre["device_hours"]) == pytest.approx(0.03)
    texts = {key: value for key, value in centre.items() if key not in ("mean", "deviation", "device_hours")}
    assert texts == {
        "method": "SemAIM", "model": "aim_tiny", "permutation": "attention_center", "target": "pixels", "options": "",
        "weights": "", "pretrained_on": "digits", "epochs": "10", "images_seen": "14370.0", "flops": "",
        "device": "cpu", "evaluated_on": "digits", "evaluation": "knn_10_mean", "runs": "3", "published": "false",
        "source": "",
        "images_per_second_per_device": "", "mfu": "", "peak_memory_gib": "",
    }  # fmt: skip
    constant = lines["SemAIM", "10", "knn_20_mean"]
    assert (constant["mean"], constant["deviation"], constant["runs"]) == ("92.0", "0.0", "3")
    probe = lines["SemAIM", "10", "linprobe_cls"]  # two seeds of the probe, one encoder
    assert (probe["mean"], float(probe["deviation"]), probe["runs"]) == ("95.5", pytest.approx(0.5**0.5), "2")
    random = lines["random", "", "knn_10_mean"]  # two encoders of one name
    assert (random["mean"], float(random["deviation"]), random["runs"]) == ("80.0", pytest.approx(2**0.5), "2")
    assert [random[name] for name in ("permutation", "target", "images_seen", "device_hours", "device")] == [""] * 5


def test_lengths_of_pretraining_are_rows_of_their_own(written: tuple[Path, str]) -> None:
    raster = [line for line in machine_lines(written[0]) if line["method"] == "ViT-iGPT"]
    shown = {(line["epochs"], line["device_hours"]): (line["mean"], line["deviation"], line["runs"])
             for line in raster if line["evaluation"] == "knn_10_mean"}  # fmt: skip
    assert shown == {("10", "0.5"): ("90.04", "", "1"), ("20", "1.25"): ("91.0", "", "1")}


def test_few_shot_deviation(written: tuple[Path, str]) -> None:
    few = {
        (line["method"], line["evaluation"]): line for line in machine_lines(written[0]) if "shot" in line["evaluation"]
    }
    assert set(few) == {
        ("SemAIM", "knn_20_mean_5shot"),
        ("SemAIM", "linprobe_cls_1shot"),
        ("ViT-iGPT", "knn_20_mean_5shot"),
    }
    own = few["SemAIM", "knn_20_mean_5shot"]
    assert (own["mean"], own["deviation"], own["runs"]) == ("71.2", "1.34", "1")
    over_runs = few["ViT-iGPT", "knn_20_mean_5shot"]
    assert (over_runs["mean"], float(over_runs["deviation"])) == ("61.0", pytest.approx(2**0.5))
    table, *_ = tables(written[1])
    few_shot = {(row["method"], row["epochs"]): row[FEW] for row in table}
    assert few_shot["SemAIM", "10"] == "40.0 (1)"


def test_methods_are_compared_by_what_differs(written: tuple[Path, str]) -> None:
    """On each data set, the best first; k-NN is what all methods on digits have."""
    digits, imagenet, _ = tables(written[1])
    assert [list(row.values()) for row in digits] == [
        ["best", "SemAIM", "attention_center", "digits", "10", "94.2 ± 1.3 (3)", "95.5 ± 0.7 (2)", "40.0 (1)"],
        ["", "ViT-iGPT", "raster", "digits", "20", "91.0 (1)", "-", "-"],
        ["", "ViT-iGPT", "raster", "digits", "10", "90.0 (1)", "-", "-"],
        ["", "random", "", "", "", "80.0 ± 1.4 (2)", "-", "-"],
    ]
    assert list(digits[0]) == [
        "", "method", "permutation", "pretrained on", "epochs", "eval/knn_10_mean", "eval/linprobe_cls", FEW,
    ]  # fmt: skip
    ours = [list(row.values()) for row in imagenet if row["source"] == "ours"]
    assert list(imagenet[0]) == [
        "", "method", "model", "pretrained on", "epochs", "FLOPs", "source", "eval/finetune", "eval/linprobe_cls",
    ]  # fmt: skip
    assert ours == [
        ["best", "SemAIM", "aim_base", "imagenet", "800", "1.3e+20", "ours", "84.0 (1)", "-"],
        ["", "timm:vit_base_patch16_224.mae", "", "", "", "", "ours", "83.4 (1)", "-"],
        ["", "other.pth", "", "", "", "", "ours", "70.0 (1)", "-"],
    ]
    assert (
        "\nbest by eval/finetune: SemAIM, 0.6 ahead of timm:vit_base_patch16_224.mae; one seed each: "
        "differences may be noise\n"
    ) in written[1]
    assert (written[0] / "report.md").read_text() in written[1]


def test_a_small_comparison_shows_only_what_differs(
    empty_copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two options of two orders, of which one was evaluated twice; published results are of other data."""
    for order, rate, values in (("raster", "0.1", [80.0, 82.0]), ("zigzag", "0.1", [83.0]), ("zigzag", "0.5", [84.0])):
        for seed, value in enumerate(values):
            options = {"pretrained__options": f"optimizer.base_lr={rate} trainer.epochs=4"}
            encoder = tags("knn", f"{order}-{rate}-{seed}", order, seed, **options)
            empty_copy.add(encoder, after(4, 100, 0.1, knn_10_mean=10.0), seed=seed)
            empty_copy.add(encoder, after(4, 100, 0.1, knn_10_mean=value, knn_20_mean=1.0), seed=seed)
    assert main(["report", "--uri", empty_copy.uri, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("""\
# Methods and evaluations

Accuracy in percent, from 8 finished evaluations.

## digits

3 methods on digits: mean ± deviation over seeds (number of runs), best first

|      | method      | permutation | optimizer.base_lr | eval/knn_10_mean |
| ---- | ----------- | ----------- | ----------------- | ---------------- |
| best | AIM, zigzag | zigzag      | 0.5               | 84.0 (1)         |
|      | AIM, zigzag | zigzag      | 0.1               | 83.0 (1)         |
|      | ViT-iGPT    | raster      | 0.1               | 81.0 ± 1.4 (2)   |

best by eval/knn_10_mean: AIM, zigzag optimizer.base_lr=0.5, 1.0 ahead of AIM, zigzag optimizer.base_lr=0.1; one seed \
each: differences may be noise
""")
    table = said.partition("\n| ")[2].partition("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 100
    assert "ublished" not in said
    experiment = empty_copy.experiment("small")
    assert f"and open:   http://127.0.0.1:5000/#/experiments/{experiment}?workflowType=machine_learning\n" in said


def test_a_user_names_the_metric(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", "--uri", store.uri, "--output", str(tmp_path), "--no-published"]
    assert main([*words, "--by", "knn_20_cls"]) == 0
    digits, imagenet, _ = tables(capsys.readouterr().out)
    assert (list(digits[0])[-4], digits[0]["eval/knn_20_cls"]) == ("eval/knn_20_cls", "89.0 ± 0.0 (3)")
    assert list(imagenet[0])[-1] == "eval/finetune"  # where there is no such metric
    message = fails(capsys, "--uri", store.uri, "--output", str(tmp_path), "--by", "knn_7_cls")
    assert "--by knn_7_cls: there is no such metric here; there are: eval/finetune, eval/finetune_best, " in message


def test_without_evaluations_pretrainings_are_compared(
    empty_copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their online accuracies, which are marked as such; those of failed ones do not count."""
    from mlflow.entities import Metric

    for order, seed, accuracy, status in (
        ("raster", 0, 70.0, "FINISHED"), ("raster", 1, 71.0, "FINISHED"), ("zigzag", 0, 75.0, "FINISHED"),
        ("zigzag", 1, 99.0, "FAILED"),
    ):  # fmt: skip
        command = f"semaim run permutation={order} seed={seed} optimizer.base_lr=0.1 'then=[]'"
        described = {
            "model": "aim_tiny",
            "permutation": order,
            "target": "pixels",
            "data": "digits",
            "command": command,
        }
        metrics = {"online/knn_10_mean": accuracy, "train/loss": 1.0, "train/epoch": 4.0, "train/total_flops": 2e13}
        place = {"mlflow.runName": f"{order} · seed {seed}", "run_folder": f"/runs/{order}-{seed}"}
        run = {"task": "pretrain", **place, **described}
        run |= {"method": "ViT-iGPT" if order == "raster" else "AIM, zigzag"}
        run_id = empty_copy.add(run, metrics, seed=seed, status=status)
        empty_copy.client.log_batch(run_id, metrics=[Metric("train/epoch", 4.0, 1, 40)])
    assert main(["report", "--uri", empty_copy.uri, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "from 3 finished pretrainings.\n\nThere are no evaluations yet: these are online accuracies" in said
    (best, other), cost = tables(said)
    assert [row["FLOPs"] for row in cost] == ["2e+13", "2e+13"]
    assert best == {"": "best", "method": "AIM, zigzag", "permutation": "zigzag", "online/knn_10_mean": "75.0 (1)"}
    assert other == {"": "", "method": "ViT-iGPT", "permutation": "raster", "online/knn_10_mean": "70.5 ± 0.7 (2)"}
    drawing = (tmp_path / "accuracy_during_pretraining.svg").read_text()
    assert {"ViT-iGPT", "AIM, zigzag"} <= {*re.findall("<!-- (.*?) -->", drawing)}
    lines = machine_lines(tmp_path)
    assert {(line["evaluation"], line["epochs"], line["pretrained_on"]) for line in lines} == {
        ("online/knn_10_mean", "4", "digits")
    }


def test_top_five_accuracies_are_in_the_csv_file_only(empty_copy: Store, tmp_path: Path) -> None:
    measured = after(10, 14370, 0.02, linprobe_cls=70.0, linprobe_cls_top5=90.0, linprobe_cls_loss=1.25)
    empty_copy.add(tags("linprobe", "centre-0"), measured)
    assert main(["report", "--uri", empty_copy.uri, "--output", str(tmp_path), "--no-published"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "report.csv has more: other numbers of neighbours, both features, top-5" in text
    assert tables(text) == [[{"eval/linprobe_cls": "70.0 (1)"}]]
    assert "\n\nSemAIM on digits: mean ± deviation" in text
    lines = {line["evaluation"]: line["mean"] for line in machine_lines(tmp_path)}
    assert lines == {"linprobe_cls": "70.0", "linprobe_cls_top5": "90.0"}


def test_published_figures_are_exact(written: tuple[Path, str]) -> None:
    (table,) = [[row for row in each if row["source"] != "ours"] for each in tables(written[1]) if "source" in each[0]]
    shown = {
        (row["method"], row["model"], row["epochs"]): tuple(
            row[name].replace("-", "") for name in ("eval/finetune", "eval/linprobe_cls")
        )
        for row in table
    }
    assert shown == PUBLISHED
    assert len(table) == len(PUBLISHED)
    for row in table:
        assert row["source"].startswith(("published: github.com/", "published: arXiv 2203.12054, abstract"))
    lines = [line for line in machine_lines(written[0]) if line["published"] == "true"]
    figures = {(line["method"], line["model"], line["epochs"], line["evaluation"]): line for line in lines}
    assert len(lines) == len(figures) == sum(bool(figure) for pair in PUBLISHED.values() for figure in pair) == 27
    for (*key, name), line in figures.items():
        assert line["mean"] == PUBLISHED[key[0], key[1], key[2]][("finetune", "linprobe_cls").index(name)]
        assert [line[empty] for empty in ("images_seen", "device_hours", "device", "deviation", "runs")] == [""] * 5
    from_saim = {(key[0], name) for (*key, name), line in figures.items() if line["source"] == "github.com/qiy20/SAIM"}
    probed = {(key[0], name) for (*key, name) in figures if name == "linprobe_cls"}
    assert from_saim | {("RandSAC", "linprobe_cls")} == probed | {("SAIM", "finetune"), ("iGPT", "finetune")}
    simmim = "github.com/skyoux/SemAIM (800 epochs in SimMIM's README)"
    assert figures["SimMIM", "ViT-B", "1600", "finetune"]["source"] == simmim
    assert {line["source"] for line in lines} == {
        "github.com/qiy20/SAIM", "github.com/skyoux/SemAIM", simmim, "arXiv 2203.12054, abstract"
    }  # fmt: skip


def test_published_results_are_below_ours_of_the_same_method(written: tuple[Path, str], empty_copy: Store) -> None:
    """Of the same size and target, and pretrained on the same data; the others follow all of ours."""
    imagenet = [(row["method"], row["model"], row["epochs"], row["source"] == "ours") for row in tables(written[1])[1]]
    assert imagenet[:6] == [
        ("SemAIM", "aim_base", "800", True),
        ("SemAIM", "ViT-B", "400", False),
        ("SemAIM", "ViT-B", "800", False),
        ("timm:vit_base_patch16_224.mae", "", "", True),
        ("other.pth", "", "", True),
        ("DINO", "ViT-B", "800", False),
    ]
    for name, method, model, others in (
        ("a", "SemAIM", "aim_large", {"pretrained__target": "clip"}),
        ("b", "RandSAC-11", "aim_base", {}),
        ("c", "MAE", "mae_large", {}),
        ("d", "MAE, attention_center", "mae_base", {}),
        ("e", "SAIM", "aim_base", {"pretrained__data": "shapes"}),
    ):
        found = {"pretrained__data": "imagenet", "pretrained__method": method, "pretrained__model": model} | others
        empty_copy.add(tags("finetune", name, data="imagenet", **found), after(10, 10, 1.0, finetune=90.0 - ord(name)))
    (table, *_) = tables(markdown(accuracies(empty_copy, published()), "5"))
    order = [(row["method"], row["model"]) for row in table][:9]
    assert order == [
        ("SemAIM", "aim_large"), ("SemAIM* (CLIP target)", "ViT-L"), ("RandSAC-11", "aim_base"), ("RandSAC", "ViT-B"),
        ("RandSAC", "ViT-B"), ("MAE", "mae_large"), ("MAE", "ViT-L"), ("MAE, attention_center", "mae_base"),
        ("SAIM", "aim_base"),
    ]  # fmt: skip


def test_methods_are_not_averaged_together(empty_copy: Store) -> None:
    """Although their other tags are the same, as of a model of the user's own that was changed."""
    for seed, method in enumerate(["MAE", "MAE", "SimMIM"]):
        found = tags("knn", f"run-{seed}", "stochastic", seed, pretrained__method=method)
        empty_copy.add(found, after(4, 100, 0.1, knn_10_mean=80.0 + seed), seed=seed)
    (table,) = tables(markdown(accuracies(empty_copy), "3"))
    assert [list(row.values()) for row in table] == [["best", "SimMIM", "82.0 (1)"], ["", "MAE", "80.5 ± 0.7 (2)"]]


def test_the_name_of_a_method_stands_for_its_choice(empty_copy: Store) -> None:
    """`method=mae` is an option of the command line, and the name is that of the composition."""
    for choice, method, accuracy in (("mae", "MAE", 80.0), ("randsac", "RandSAC-11", 70.0)):
        found = tags("knn", choice, "stochastic", pretrained__method=method, pretrained__options=f"method={choice}")
        empty_copy.add(found, after(4, 100, 0.1, knn_10_mean=accuracy))
    (table,) = tables(markdown(accuracies(empty_copy), "3"))
    assert [list(row.values()) for row in table] == [["best", "MAE", "80.0 (1)"], ["", "RandSAC-11", "70.0 (1)"]]


def test_runs_of_earlier_versions_have_no_method(empty_copy: Store) -> None:
    """What is known of them is shown: no name is guessed. A later evaluation of the same encoder has the name."""

    def old(name: str, order: str) -> dict[str, str]:
        return {key: value for key, value in tags("knn", name, order).items() if key != "pretrained.method"}

    for accuracy, order in ((80.0, "attention_center"), (70.0, "zigzag")):
        empty_copy.add(old(order, order), after(4, 100, 0.1, knn_10_mean=accuracy))
    (table,) = tables(text := markdown(accuracies(empty_copy), "2"))
    assert [list(row.values()) for row in table] == [
        ["best", "attention_center", "80.0 (1)"], ["", "zigzag", "70.0 (1)"],
    ]  # fmt: skip
    assert "best by eval/knn_10_mean: attention_center, 10.0 ahead of zigzag" in text
    empty_copy.add(tags("knn", "new", "raster"), after(4, 100, 0.1, knn_10_mean=75.0))
    (table,) = tables(text := markdown(accuracies(empty_copy), "3"))
    assert [list(row.values()) for row in table] == [
        ["best", "", "attention_center", "80.0 (1)"], ["", "ViT-iGPT", "raster", "75.0 (1)"],
        ["", "", "zigzag", "70.0 (1)"],
    ]  # fmt: skip
    assert "best by eval/knn_10_mean: attention_center pixels, 5.0 ahead of ViT-iGPT" in text
    empty_copy.add(tags("linprobe", "attention_center"), after(4, 100, 0.1, linprobe_cls=60.0))
    (table,) = tables(markdown(accuracies(empty_copy), "4"))
    assert list(table[0].values()) == ["best", "SemAIM", "attention_center", "80.0 (1)", "60.0 (1)"]


def test_cells_contain_only_known_values(written: tuple[Path, str]) -> None:
    assert list(machine_lines(written[0])[0]) == CSV_COLUMNS
    cells = [cell for table in tables(written[1]) for row in table for cell in row.values()]
    assert {"", "-"} <= set(cells)
    values = {value for line in machine_lines(written[0]) for value in line.values()}
    assert not {"None", "nan", "0", "-"} & values
    assert not {"None", "nan", "0", "- (0)"} & set(cells)


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        (("--experiment", "big"), {"SemAIM", "other.pth", "timm:vit_base_patch16_224.mae"}),
        (("--experiment", "big", "--experiment", "small", "--data", "digits"),
         {"SemAIM", "ViT-iGPT", "random"}),
        (("--tag", "sweep=orders"), {"SemAIM"}),
        (("--tag", "pretrained.model=aim_tiny", "--tag", "task=fewshot", "--tag", "pretrained.permutation=raster"),
         {"ViT-iGPT"}),
        (("--data", "imagenet", "--tag", "pretrained.device=cuda"), {"SemAIM"}),
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
    for data, option, expected in (
        ("digits", [], set()), ("imagenet", [], {"ImageNet-1k"}), ("imagenet", ["--no-published"], set()),
        ("digits", ["--published"], {"ImageNet-1k"}),
    ):  # fmt: skip
        assert main(["report", "--uri", store.uri, "--output", str(tmp_path), "--data", data, *option]) == 0
        lines = machine_lines(tmp_path)
        assert {line["evaluated_on"] for line in lines} == {data, *expected}
