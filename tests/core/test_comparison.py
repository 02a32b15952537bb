"""Which one is best: the table and the words of a comparison, as a user reads them."""

from __future__ import annotations

import pytest

from semaim.core.comparison import Comparison, Group, Score, compare, pooled
from semaim.errors import UserError

KNN, PROBE, ONLINE, LOSS = "eval/knn_10_mean", "eval/linprobe_cls", "online/knn_10_mean", "train/loss"


def orders(metric: str = KNN, option: str = "permutation", **values: list[float]) -> list[Group]:
    """Groups by order, with the values of each seed."""
    return pooled(({option: order}, {metric: value}) for order, seeds in values.items() for value in seeds)


def test_the_whole_text() -> None:
    runs = [
        ({"permutation": "raster"}, {KNN: 90.0, ONLINE: 80.0, LOSS: 0.5}),
        ({"permutation": "raster"}, {KNN: 91.0, ONLINE: 81.0, LOSS: 0.6}),
        ({"permutation": "attention_center"}, {KNN: 95.0, ONLINE: 79.0, LOSS: 0.9}),
        ({"permutation": "attention_center"}, {KNN: 96.0, ONLINE: 79.0, LOSS: 0.8}),
        ({"permutation": "zigzag"}, {}),
    ]
    found = compare(pooled(runs))
    assert found.text("4 of 5 runs").splitlines() == [
        "4 of 5 runs: mean ± deviation over seeds (number of runs), best first",
        "      permutation       eval/knn_10_mean  online/knn_10_mean",
        "best  attention_center  95.5 ± 0.7 (2)    79.0 ± 0.0 (2)",
        "      raster            90.5 ± 0.7 (2)    80.5 ± 0.7 (2)",
        "      zigzag            -                 -",
        "best by eval/knn_10_mean: attention_center, 5.0 ahead of raster; the difference is more than the spread over "
        "seeds",
    ]
    assert "| best | attention_center | 95.5 ± 0.7 (2)   | 79.0 ± 0.0 (2)     |" in found.markdown("4 of 5 runs")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"a": [90.0], "b": [91.0]}, "b, 1.0 ahead of a; one seed each: differences may be noise"),
        ({"a": [90.0, 90.0], "b": [91.0]}, "b, 1.0 ahead of a; one of them has one seed: the difference may be noise"),
        ({"a": [89.0, 91.0], "b": [90.0, 92.0]}, "b, 1.0 ahead of a; the difference is within the spread over seeds"),
        (
            {"a": [89.0, 91.0], "b": [94.0, 96.0]},
            "b, 5.0 ahead of a; the difference is more than the spread over seeds",
        ),
    ],
)
def test_a_winner_is_said_honestly(values: dict[str, list[float]], verdict: str) -> None:
    found = compare(orders(**values))
    assert found.verdict == f"best by {KNN}: {verdict}"
    assert found.best is not None
    assert found.best.label == "b"


def test_equal_groups_have_no_winner() -> None:
    two = compare(orders(a=[90.0], b=[90.04], c=[80.0]))
    assert two.best is None
    assert two.verdict == f"no winner by {KNN}: b and a are equal"
    assert compare(orders(a=[90.0], b=[90.0], c=[90.0])).verdict == f"no winner by {KNN}: the first 3 are equal"


def test_a_single_group_is_a_row_without_a_winner() -> None:
    """Of a sweep over seeds."""
    found = compare(pooled(({}, {KNN: value}) for value in (90.0, 92.0, 91.0)))
    assert found.text("3 runs").splitlines() == [
        "3 runs: mean ± deviation over seeds (number of runs)", "eval/knn_10_mean", "91.0 ± 1.0 (3)",
    ]  # fmt: skip
    assert (found.verdict, found.brief) == ("", "eval/knn_10_mean 91.0 ± 1.0 (3)")


def test_the_metric_is_the_most_demanding_one_that_all_have() -> None:
    both = ({"o": "a"}, {PROBE: 90.0, KNN: 80.0, ONLINE: 70.0})
    assert compare(pooled([both, ({"o": "b"}, {PROBE: 91.0, KNN: 70.0})])).metric == PROBE
    without_probe = compare(pooled([both, ({"o": "b"}, {KNN: 85.0}), ({"o": "c"}, {})]))
    assert (without_probe.metric, without_probe.groups[0].label) == (KNN, "b")
    assert without_probe.rows(without_probe.metrics)[0] == ["", "o", KNN, PROBE, ONLINE]
    nothing = compare(pooled([({"task": "knn"}, {KNN: 80.0}), ({"task": "linprobe"}, {PROBE: 90.0})]))
    assert nothing.verdict == "no winner: they have no metric in common; --by METRIC compares those that have it"
    assert [group.label for group in nothing.groups] == ["knn", "linprobe"]


def test_a_user_names_the_metric() -> None:
    groups = pooled(
        [({"o": "a"}, {KNN: 90.0, "eval/knn_20_cls": 50.0, LOSS: 1.0}), ({"o": "b"}, {KNN: 80.0, LOSS: 0.5})]
    )
    assert compare(groups, "knn_20_cls").verdict == "only a has eval/knn_20_cls"
    assert compare(groups, KNN).groups[0].label == "a"
    lower = compare(groups, "loss")
    assert lower.verdict == "best by train/loss: b, 0.5 ahead of a; one seed each: differences may be noise"
    with pytest.raises(UserError, match=r"--by knn_7: there is no such metric here; there are: eval/knn_10_mean, eval"):
        compare(groups, "knn_7")


def test_the_loss_compares_only_what_is_equally_hard_to_predict() -> None:
    by_rate = compare(orders(LOSS, "optimizer.base_lr", slow=[0.9], fast=[0.4]))
    assert by_rate.verdict == f"best by {LOSS}: fast, 0.5 ahead of slow; one seed each: differences may be noise"
    by_order = compare(orders(LOSS, raster=[0.9], attention=[0.4]))
    assert by_order.best is None
    assert by_order.verdict.startswith("no winner: losses do not compare what is harder or easier to predict")
    assert [group.label for group in by_order.groups] == ["raster", "attention"]  # as they were


def test_results_on_different_data_have_no_winner() -> None:
    found = compare(orders(option="data", digits=[90.0], shapes=[40.0]))
    assert (found.best, found.verdict) == (None, "no winner: results on different data do not compare")
    assert compare(orders(option="pretrained.data", digits=[90.0], shapes=[40.0])).best is not None


def test_a_page_has_room_for_some_groups_only() -> None:
    found = compare(orders(**{f"order{number}": [float(number)] for number in range(100)}))
    assert found.markdown("100 runs").count("\n|") == 102
    cut = found.markdown("100 runs", 500)
    assert "| best | order99     | 99.0 (1)         |" in cut
    table, more, verdict = cut.split("\n\n")[1:]
    assert len(table) <= 500
    assert more == f"and {102 - len(table.splitlines())} more: see results.csv among the artifacts"
    assert verdict.startswith("best by ")


def test_long_values_and_many_columns_fit_the_screen() -> None:
    long = ",".join(map(str, range(100)))
    values = {f"eval/own_{letter}": 1.0 for letter in "abc"} | {
        PROBE: 1.0,
        KNN: 1.0,
        ONLINE: 1.0,
        "online/linear_cls": 1.0,
    }
    groups = pooled(({"task.ks": f"[{number},{long}]"}, values) for number in range(2))
    lines = compare(groups).text("2 runs").splitlines()
    assert max(map(len, lines[:4])) <= 100
    assert lines[2].startswith("[0,0,1,2,3,4,5,6,7,8,9,10,11...,91,92,93,94,95,96,97,98,99]  1.0 (1)")


def test_a_single_few_shot_run_states_its_own_deviation() -> None:
    (group,) = pooled([({}, {"eval/linprobe_mean_5shot": 70.0, "eval/linprobe_mean_5shot_std": 1.25})])
    assert group.scores["eval/linprobe_mean_5shot"] == Score(70.0, 1.25, 1)
    assert Comparison([group], None).metrics == ["eval/linprobe_mean_5shot"]


@pytest.mark.parametrize(
    ("option", "compares"),
    [
        ("method", False),
        ("model.segments", False),
        ("model.visible", False),
        ("model.hidden", False),
        ("model.mask_unit", False),
        ("permutation.kind", False),
        ("model", True),
        ("model.depth", True),
        ("trainer.epochs", True),
    ],
)
def test_losses_of_other_methods_do_not_compare(option: str, compares: bool) -> None:
    """MAE's loss counts hidden patches only, and segments see less; the size of a model makes nothing harder."""
    found = compare(orders(LOSS, option, one=[0.9], other=[0.4]))
    assert (found.best is not None) == compares
    assert found.verdict.startswith("best by train/loss: other" if compares else "no winner: losses do not compare")
    assert compare(orders(option=option, one=[90.0], other=[40.0])).best is not None  # by an accuracy


def test_a_method_that_follows_from_options_is_a_column_and_no_name() -> None:
    runs = [({"model": f"{name}_tiny", "method": name.upper()}, {LOSS: 0.5, KNN: 90.0 + len(name)})
            for name in ("mae", "simmim")]  # fmt: skip
    found = compare(pooled(runs))
    assert found.verdict.startswith(f"best by {KNN}: simmim_tiny, 3.0 ahead of mae_tiny")
    assert found.rows([KNN])[:2] == [["", "model", "method", KNN], ["best", "simmim_tiny", "SIMMIM", "96.0 (1)"]]
    only_loss = compare(pooled((options, {LOSS: metrics[LOSS]}) for options, metrics in runs))
    assert only_loss.verdict.startswith("no winner: losses do not compare")
