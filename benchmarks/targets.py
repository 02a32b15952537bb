"""The targets of speed, and whether the newest results meet them.

Those of a step and of a training are for one H100, ViT-B, 256 images per step, bf16, compiled blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Result = dict[str, Any]
Results = Sequence[Result]


@dataclass(frozen=True)
class Target:
    """A target.

    Args:
        text: in words.
        measure: the command that measures it.
        benchmark: whose results tell, "step", "data" or others.
        gpu: whether it is for a GPU; None for any machine.
        value: the number in a result; KeyError if the result does not have it.
        least: the number to reach.
        form: how to write the number.
    """

    text: str
    measure: str
    benchmark: str
    gpu: bool | None
    value: Callable[[Result], float]
    least: float
    form: str

    def judge(self, results: Results) -> tuple[str | None, bool | None]:
        """The newest number with date and commit, and whether it meets the target; None if there is none."""
        for result in sorted(results, key=lambda each: each["date"], reverse=True):
            on_gpu = result["hardware"]["gpu"] is not None
            if result["benchmark"] != self.benchmark or self.gpu not in (None, on_gpu) or result.get("small"):
                continue
            try:
                value = self.value(result)
            except KeyError:
                continue
            at = f"{result['date'][:10]}, {(result['commit'] or 'unknown')[:7]}"
            return f"{self.form.format(value)} ({at})", value >= self.least
        return None, None


def of_base(result: Result, images: int) -> Result:
    """The result, if it is of ViT-B with a number of images; else KeyError."""
    if (result["settings"]["model"], result["settings"]["batch_size"]) != ("base", images):
        raise KeyError(images)
    return result


def _compiled_share(result: Result) -> float:
    return of_base(result, 256)["forms"]["sorted, compiled"]["share_of_matmul_peak"]


def _over_authors(result: Result) -> float:
    return of_base(result, 256)["times_as_fast_as"]["authors'"]["sorted, compiled"]["median"]


def _over_eager(result: Result) -> float:
    forms = of_base(result, 256)["forms"]
    return forms["sorted"]["milliseconds"] / forms["sorted, compiled"]["milliseconds"]


def _busy(result: Result) -> float:
    phases = of_base(result, 256)["forms"]["sorted, compiled"]["phases"]
    return 1 - phases["idle"] / phases["whole"]


def _waits(result: Result) -> float:
    if not result["compiled"]:
        raise KeyError("compiled")
    return 1 - max(result["data_wait"])


def _path(name: str, result: Result) -> float:
    return result["per_core"][name]["times_as_fast_as_plain"]["median"]


STEP = "python -m benchmarks step --model base --batch-size 256"
TRAINING = "PARTS=train bash benchmarks/gpu_campaign.sh"
targets = [
    *(
        Target(
            f"JPEG path of {path}: at least {least} times the images per second and core of the plain form",
            "python -m benchmarks data",
            "data",
            None,
            partial(_path, path),
            least,
            "{:.2f} times",
        )
        for path, least in (("pretraining", 2.5), ("evaluation", 2.0), ("RandAugment", 1.0))
    ),
    Target(
        "step: at least 55 % of the measured peak of bf16 matrix products",
        STEP,
        "step",
        True,
        _compiled_share,
        0.55,
        "{:.0%}",
    ),
    Target("step: at least 4 times as fast as the authors' form", STEP, "step", True, _over_authors, 4, "{:.2f} times"),
    Target("step: compiled blocks are faster", STEP, "step", True, _over_eager, 1, "{:.2f} times"),
    Target("step: the GPU has work for at least 98 % of it", STEP, "step", True, _busy, 0.98, "{:.1%}"),
    Target("training on JPEG: at least 98 % is no wait for data", TRAINING, "training", True, _waits, 0.98, "{:.2%}"),
    Target(
        "the first command of the README is not slower than in an earlier version",
        "python -m benchmarks startup --against <checkout>",
        "startup",
        None,
        lambda each: each["times_as_fast_as_against"]["in all"]["median"],
        0.98,
        "{:.2f} times as fast",
    ),
]
