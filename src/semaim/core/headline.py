"""The headline metric: the one number of a run that compares it with others (docs/evaluation.md states the rule)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# Kinds of evaluation, the most demanding first, and the metrics of each, the preferred one first. Of those that
# differ only in a number, the smallest `least` or the largest `most` is preferred.
KINDS = (
    (r"eval/finetune",),
    (r"eval/linprobe_cls", r"eval/linprobe_mean"),
    (r"eval/knn_10_mean", r"eval/knn_(?P<least>\d+)_mean", r"eval/knn_10_cls", r"eval/knn_(?P<least>\d+)_cls"),
    (r"eval/linprobe_mean_(?P<most>\d+)shot", r"eval/linprobe_cls_(?P<most>\d+)shot", r"eval/knn_.+_(?P<most>\d+)shot"),
    (r"eval/.+",),  # of a task that is not semaim's: its main metric
    (r"online/knn_10_mean", r"online/knn_(?P<least>\d+)_mean", r"online/knn_10_cls", r"online/knn_(?P<least>\d+)_cls"),
    (r"online/linear_cls", r"online/linear_mean"),
    (r"online/.+",),
    (r"train/loss",),
)
FINETUNE, *_, LOSS = (kind[0] for kind in KINDS)
SECONDARY = re.compile(r".*_(top5|loss|std|best|ema|before_norm)")  # shown beside a metric, or in files alone
PERCENT = re.compile(r"(eval|online)/(finetune|linprobe_|linear_|knn_).*(?<!_loss)")
LOWER_IS_BETTER = {"loss", "error", "perplexity", "nll", "mse", "rmse"}  # words of a name
COUNTS = ("images",)  # main results that measure nothing


def measured(metric: str, result: Mapping[str, float]) -> dict[str, float]:
    """The results of a run by their names in MLflow, its main metric first; without values from before training.

    Args:
        metric: name of the main result.
        result: results by name, as a task returns them.
    """
    if metric in COUNTS:
        return {}
    names = [name for name in dict.fromkeys((metric, *result)) if not name.endswith("_before")]
    prefix = "" if metric == "loss" else "eval/"  # of a pretraining, or of an evaluation
    return {_in_mlflow(name, prefix): result[name] for name in names}


def _in_mlflow(name: str, prefix: str) -> str:
    if name == "loss":
        return LOSS
    return name.removesuffix("_after") if "/" in name else f"{prefix}{name}"


def headlines(metrics: Iterable[str]) -> list[str]:
    """The preferred metric of each kind of evaluation, the most demanding first; the loss only without others."""
    best: dict[int, tuple[tuple[int, ...], str]] = {}
    for metric in metrics:
        if (rank := _rank(metric)) is not None:
            kind, *preference = rank
            candidate = (tuple(preference), metric)
            best[kind] = min(best.get(kind, candidate), candidate, key=lambda each: each[0])  # of equals the first
    found = [best[kind][1] for kind in sorted(best)]
    return found[:-1] if len(found) > 1 and found[-1] == LOSS else found


def headline(metric: str, result: Mapping[str, float]) -> tuple[str, float]:
    """Name and value of the headline metric of a run, or its main result if it measures nothing else.

    Args:
        metric, result: as of `measured`.
    """
    found = measured(metric, result)
    name = next(iter(headlines(found)), None)
    return (metric, result[metric]) if name is None else (name, found[name])


def headline_text(metric: str, result: Mapping[str, float]) -> str:
    """The headline metric of a run with its value. Arguments as of `measured`."""
    name, value = headline(metric, result)
    return f"{name} {digits(name, value)}"


def headlines_text(metrics: Mapping[str, float], result: Mapping[str, float]) -> str:
    """The headline metrics of a run and its evaluations, at most three; the first result if there are none.

    Args:
        metrics: by their names in MLflow.
        result: results as tasks return them.
    """
    names = headlines(metrics)[:3]
    shown = {name: metrics[name] for name in names} or dict(list(result.items())[:1])
    return "  ".join(f"{name} {digits(name, value)}" for name, value in shown.items())


def _rank(metric: str) -> tuple[int, int, int] | None:
    """Kind, preference in the kind, and preference among numbers; the smallest comes first."""
    if SECONDARY.fullmatch(metric):
        return None
    for kind, patterns in enumerate(KINDS):
        for place, pattern in enumerate(patterns):
            if (match := re.fullmatch(pattern, metric)) is not None:
                number = match.groupdict()
                return kind, place, int(number.get("least") or 0) - int(number.get("most") or 0)
    return None


def preferred_k(ks: Sequence[int]) -> int:
    """The number of neighbours of the headline metric: 10, else the smallest."""
    return 10 if 10 in ks else min(ks)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value is the better one: of losses and errors."""
    return not LOWER_IS_BETTER.isdisjoint(re.split(r"[^a-z0-9]+|_", metric.lower()))


def digits(metric: str, value: float) -> str:
    """A value with the digits that mean something: one decimal of an accuracy in percent, else four digits."""
    return f"{value:.1f}" if PERCENT.fullmatch(metric) else f"{value:.4g}"
