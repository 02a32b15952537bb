"""The headline metric: one number of a run, by the rule of docs/evaluation.md."""

from __future__ import annotations

import pytest

from semaim.core.headline import digits, headline, headline_text, headlines, lower_is_better, measured, preferred_k

PRETRAINED = {
    "loss": 0.25, "online/knn_10_cls_before": 70.0, "online/knn_10_mean_before": 71.0, "online/knn_10_cls_after": 90.0,
    "online/knn_20_mean_after": 99.0, "online/knn_10_mean_after": 91.04,
}  # fmt: skip


def test_the_most_demanding_kind_comes_first_and_each_has_one_metric() -> None:
    metrics = [
        "train/loss", "online/linear_mean", "online/linear_cls", "online/knn_20_mean", "online/knn_10_mean",
        "eval/linprobe_cls_1shot", "eval/linprobe_mean_1shot", "eval/linprobe_mean_10shot", "eval/knn_5_mean_10shot",
        "eval/knn_10_cls", "eval/knn_30_mean", "eval/knn_20_mean", "eval/knn_10_mean", "eval/linprobe_mean",
        "eval/linprobe_cls", "eval/linprobe_cls_top5", "eval/linprobe_cls_loss", "eval/finetune_best", "eval/finetune",
        "eval/finetune_ema", "eval/knn_10_mean_before_norm", "eval/linprobe_mean_10shot_std",
    ]  # fmt: skip
    assert headlines(metrics) == [
        "eval/finetune", "eval/linprobe_cls", "eval/knn_10_mean", "eval/linprobe_mean_10shot", "online/knn_10_mean",
        "online/linear_cls",
    ]  # fmt: skip
    assert headlines(["eval/knn_200_mean", "eval/knn_20_cls", "eval/knn_20_mean"]) == ["eval/knn_20_mean"]
    assert headlines(["eval/knn_10_cls", "eval/knn_20_mean"]) == ["eval/knn_20_mean"]
    assert headlines(["train/loss"]) == ["train/loss"]
    assert headlines(["order/first", "eval/finetune_top5"]) == []


def test_results_have_the_names_of_mlflow() -> None:
    assert measured("loss", PRETRAINED | {"images": 3.0}) == {
        "train/loss": 0.25, "online/knn_10_cls": 90.0, "online/knn_20_mean": 99.0, "online/knn_10_mean": 91.04,
        "images": 3.0,
    }  # fmt: skip
    assert list(measured("b", {"a": 1.0, "b": 2.0})) == ["eval/b", "eval/a"]  # of one's own task, the main one first
    assert measured("images", {"images": 20.0, "center": 1.0}) == {}  # drawn, not measured


@pytest.mark.parametrize(
    ("metric", "result", "text"),
    [
        ("loss", PRETRAINED, "online/knn_10_mean 91.0"),
        ("loss", {"loss": 0.123456}, "train/loss 0.1235"),
        ("knn_5_mean", {"knn_5_cls": 90.0, "knn_10_mean": 80.0, "knn_5_mean": 85.0}, "eval/knn_10_mean 80.0"),
        ("nearest_mean_mean", {"nearest_mean_cls": 0.5, "nearest_mean_mean": 0.25}, "eval/nearest_mean_mean 0.25"),
        ("images", {"images": 20}, "images 20"),
    ],
)
def test_of_a_run(metric: str, result: dict[str, float], text: str) -> None:
    assert headline_text(metric, result) == text
    assert headline(metric, result)[0] == text.split()[0]


def test_direction_and_digits() -> None:
    lower = ["train/loss", "eval/linprobe_cls_loss", "eval/word_error", "eval/perplexity", "eval/RMSE"]
    assert [lower_is_better(name) for name in lower] == [True] * 5
    assert not any(lower_is_better(name) for name in ("eval/finetune", "eval/lossless", "online/knn_10_mean"))
    assert digits("online/linear_cls_loss", 0.123456) == "0.1235"
    assert (preferred_k([20, 10]), preferred_k([7, 5, 200])) == (10, 5)
