"""Tables of results as Markdown, and the page of them: docs/performance.md between its marks.

<!-- table NAME -->
...
<!-- end -->
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.communication import FAST, SLOW, efficiency
from benchmarks.forms import MODELS
from benchmarks.targets import targets

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUSTAINED = 350e12  # operations per second of an H100 in compiled steps, as measured
IMAGES_PER_GPU = 64
VIT = {"tiny": "tiny", "small": "ViT-S", "base": "ViT-B", "large": "ViT-L", "huge": "ViT-H"}
Result = dict[str, Any]
Results = Sequence[Result]


def command(check: bool) -> int:
    """Write the page, or only check it; the exit code is 1 if it was not up to date."""
    before = PAGE.read_text()
    after = page(before, stored())
    if before == after:
        return 0
    if check:
        print(f"{PAGE} does not match benchmarks/results: run python -m benchmarks table", file=sys.stderr)
        return 1
    PAGE.write_text(after)
    return 0


def stored(folder: Path = RESULTS) -> list[Result]:
    """All stored results, oldest first: of the benchmarks, and of trainings, from their journals.

    Those of steps from before 0.2.0 name no benchmark.
    """
    of_benchmarks = [{"benchmark": "step"} | json.loads(file.read_text()) for file in folder.glob("*.json")]
    of_trainings = [of_training(file.read_text().splitlines()) for file in folder.glob("*.jsonl")]
    return sorted([*of_benchmarks, *of_trainings], key=lambda result: result["date"])


def of_training(journal: Sequence[str]) -> Result:
    """The result of a training, from its journal: speed between entries of the journal, and wait for data."""
    lines = [json.loads(line) for line in journal]
    tags: dict[str, str] = next(line["tags"] for line in lines if "command" in line.get("tags", {}))
    batch_size = int(re.findall(r"trainer\.batch_size=(\d+)", tags["command"])[-1])
    logged = [line for line in lines if "train/images_per_second" in line.get("metrics", {})]
    return {
        "benchmark": "training",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.gmtime(lines[0]["time"] / 1e3)),
        "commit": tags["commit"],
        "hardware": {"gpu": None if tags["device"] == "cpu" else tags["device"], "cpu": tags["device"], "cpu_cores": 0},
        "model": tags["model"],
        "compiled": "trainer.compile=true" in tags["command"],
        "batch_size": batch_size,
        "images_per_second": [
            (after["step"] - before["step"]) * batch_size / ((after["time"] - before["time"]) / 1e3)
            for before, after in pairwise(logged)
        ],
        "data_wait": [line["metrics"]["data/wait"] for line in logged],
    }


def page(text: str, results: Results) -> str:
    """The page with the tables of these results."""
    return MARKED.sub(lambda mark: f"{mark[1]}\n{TABLES[mark[2]](results)}\n\n{mark[3]}", text)


def of_results(benchmark: str, results: Results) -> str:
    """The tables of the results of one benchmark."""
    return "\n\n".join(filter(None, (TABLES[name](results) for name in TABLES if name.startswith(benchmark))))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *lines]) if lines else ""


def where(result: Result) -> str:
    """Date, commit and machine of a result; a star marks a machine that others used at the same time."""
    hardware = result["hardware"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware.get('torch_threads', '?')} threads"
    star = "\\*" if result.get("busy") else ""
    return f"{result['date'][:10]}, {(result['commit'] or 'unknown')[:7]}, {machine.removeprefix('NVIDIA ')}{star}"


def chosen(results: Results, benchmark: str, gpu: bool | None = None) -> list[Result]:
    """The results of a benchmark, of GPUs only or of CPUs only if asked."""
    return [
        each
        for each in results
        if each["benchmark"] == benchmark and (gpu is None or gpu == (each["hardware"]["gpu"] is not None))
    ]


def step(results: Results, gpu: bool | None = None) -> str:
    """Speed of the forms."""
    rows = []
    for result in chosen(results, "step", gpu):
        settings = result["settings"]
        before = {"masked": result.get("times_as_fast_as_masked", {})}  # 0.2.0
        ratios = result.get("times_as_fast_as", before)
        first = f"{where(result)}: {VIT[settings['model']]}, {settings['batch_size']} images"
        explicit = " (explicit softmax)" if settings.get("masked_attention") == "explicit" else ""
        for name, form in result["forms"].items():
            if name == "semantic pass":
                continue
            memory = form["peak_memory_bytes"]
            rows.append((
                first, name + (explicit if name == "masked" else ""), f"{form['milliseconds']:.1f}",
                f"{form['images_per_second']:.4g}", f"{form['flops_per_second'] / 1e12:.3g}",
                f"{form['share_of_matmul_peak']:.0%}", "" if memory is None else f"{memory / 2**30:.2f}",
                *(spread(ratios.get(reference, {}).get(name)) for reference in ("masked", "authors'")),
            ))  # fmt: skip
            first = ""
        rows += [(first, name, *["out of memory"] * 7) for name in result.get("out_of_memory", ())]
    header = ("measurement", "form", "ms", "images/s", "TFLOP/s", "of peak", "GiB", "x masked", "x authors'")
    return markdown(header, rows)


def spread(ratio: dict[str, float] | None) -> str:
    """A ratio of medians, and the spread of its rounds."""
    return "" if ratio is None else f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"


def phases(results: Results) -> str:
    """Milliseconds of the phases of a step, with images on the device and with those of a loader."""
    columns = ("data", "semantic pass", "forward", "backward", "optimizer", "gaps", "idle", "whole")
    rows = []
    for result in chosen(results, "step"):
        settings = result["settings"]
        first = f"{where(result)}: {VIT[settings['model']]}, {settings['batch_size']} images"
        found = [(name, form.get("phases")) for name, form in result["forms"].items()]
        found += [(f"{name}; real images", each) for name, each in result.get("breakdown", {}).items()]
        for name, each in found:
            if each:
                cells = [f"{each[column]:.1f}" if column in each else "" for column in columns]
                rows.append((first, name, *cells))
                first = ""
    return markdown(("measurement", "form", *columns), rows)


def data(results: Results) -> str:
    """Speed of the data path."""
    rows = []
    for result in chosen(results, "data"):
        first = where(result)
        for path, core in result["per_core"].items():
            rows += [
                (first, f"{path}, one core, plain form", f"{core['plain_images_per_second']:.0f}", ""),
                ("", f"{path}, one core, semaim", f"{core['semaim_images_per_second']:.0f}",
                 spread(core["times_as_fast_as_plain"])),
            ]  # fmt: skip
            first = ""
        rows += [
            ("", f"semaim, data.num_workers={each['workers']}", f"{each['images_per_second']:.0f}", "")
            for each in result["workers"]
        ]
    return markdown(("measurement", "", "images/s", "x plain"), rows)


def knn(results: Results) -> str:
    """Speed of the neighbours."""
    rows = [
        (
            where(each), f"{each['queries']} x {each['bank']} x {each['width']}",
            *(f"{each['seconds'][name]:.2f}" for name in ("semaim", "plain")), spread(each["times_as_fast_as_plain"]),
            f"{each['same_class']:.2%}",
        )
        for each in chosen(results, "knn")
    ]  # fmt: skip
    return markdown(("measurement", "queries x bank x width", "semaim, s", "plain, s", "x plain", "same class"), rows)


def parts(results: Results) -> str:
    """Other ways to compute parts of a step; a gain is a share of the whole step."""
    rows = []
    for result in chosen(results, "parts"):
        settings = result["settings"]
        first = f"{where(result)}: {VIT[settings['model']]}, {settings['batch_size']} images, {settings['precision']}"
        for each in result["parts"]:
            present = each["way"] == "present"
            measured = "milliseconds" in each
            rows.append((
                first, each["part"] if present else "", each["way"],
                f"{each['milliseconds']:.2f}" if measured else "computes something else",
                spread(each["times_as_fast"]) if measured and not present else "",
                f"{each['gain_of_step']:+.1%}" if measured and not present else "",
            ))  # fmt: skip
            first = ""
    return markdown(("measurement", "part", "way", "ms a call", "x present", "gain of a step"), rows)


def startup(results: Results) -> str:
    """Stages of the first command."""
    rows = []
    for result in chosen(results, "startup"):
        seconds = result["seconds"]
        faster = result.get("times_as_fast_as_against", {})
        first = f"{where(result)}, {result['steps'] or 'all'} steps"
        rows.append((first, "`import torch` alone", f"{result['import_torch_seconds']:.2f}", "", ""))
        for stage, here in seconds["this"].items():
            other = f"{seconds['against'][stage]:.2f}" if "against" in seconds else ""
            rows.append(("", stage, f"{here:.2f}", other, spread(faster.get(stage))))
    return markdown(("measurement", "stage", "s", "s at the other commit", "x the other"), rows)


def scaling(results: Results) -> str:
    """Speed of several processes."""
    rows: list[tuple[str, ...]] = []
    for result in chosen(results, "scaling"):
        settings = result["settings"]
        first = f"{where(result)}: {settings['model']}, {settings['batch_size']} images per process"
        for each in result["processes"]:
            seconds = each["seconds"]
            rows.append((first, "1", f"{settings['batch_size'] / seconds['alone']:.4g}", "", "",
                         f"{seconds['alone'] * 1e3:.1f}", "", ""))  # fmt: skip
            if each["processes"] == 1:
                continue
            speed = each["all_reduce_bytes_per_second"] / 1e9
            predicted = [f"{seconds['whole'] * 1e3:.1f}", f"{each['predicted_seconds'] * 1e3:.1f}", f"{speed:.3g} GB/s"]
            first = ""
            rows.append((first, str(each["processes"]), f"{each['images_per_second']:.4g}", f"{each['efficiency']:.0%}",
                         f"{max(0.0, each['communication_share']):.1%}", *predicted))  # fmt: skip
            first = ""
    header = (
        "measurement",
        "processes",
        "images/s",
        "efficiency",
        "communication",
        "ms",
        "ms by the model",
        "all-reduce",
    )
    return markdown(header, rows)


def methods(results: Results) -> str:
    """Steps of the methods."""
    rows = []
    for result in chosen(results, "methods"):
        settings = result["settings"]
        first = f"{where(result)}: {VIT[settings['model']]}, {settings['batch_size']} images, {settings['dtype']}"
        for name, each in result["methods"].items():
            rows.append((
                first, name, f"{each['flops_per_image'] / 1e9:.3g}", f"{each['images_per_second']:.4g}",
                f"{each['flops_per_second'] / 1e12:.3g}",
                "" if name == "SemAIM" else spread(each["times_as_fast_as_SemAIM"]),
            ))  # fmt: skip
            first = ""
    return markdown(("measurement", "method", "GFLOP/image", "images/s", "TFLOP/s", "x SemAIM"), rows)


def paper(_: Results) -> str:
    """Efficiency on many GPUs by the model on paper."""
    from semaim.models.aim import AIM
    from semaim.models.flops import cost

    rows = []
    for name in ("base", "large", "huge"):
        patch = 14 if name == "huge" else 16
        with torch.device("meta"):  # shapes without values
            model = AIM(3 * patch**2, 224, patch, *MODELS[name])
        spent = cost(model, 1)
        seconds = IMAGES_PER_GPU * spent.training_step / SUSTAINED
        backward = seconds * 2 * spent.predict / spent.training_step
        shares = [
            efficiency(seconds, backward, spent.parameters, gpus, network)
            for gpus, network in ((8, FAST), (32, FAST), (256, FAST), (32, SLOW), (256, SLOW))
        ]
        rows.append((f"ViT-{name[0].upper()}/{patch}", f"{spent.parameters / 1e6:.0f} M",
                     f"{4 * spent.parameters / 2**30:.2f} GiB", f"{seconds * 1e3:.0f}",
                     *(f"{share:.1%}" for share in shares)))  # fmt: skip
    header = ("model", "parameters", "gradients", "ms per step", "8 GPUs", "32", "256", "32, slow", "256, slow")
    return markdown(header, rows)


def training(results: Results) -> str:
    """Whole trainings."""
    rows = [
        (
            where(each),
            f"{each['model']}{', compiled' if each['compiled'] else ''}, {each['batch_size']} images per step",
            f"{median(each['images_per_second']):.0f}",
            f"{max(each['data_wait']):.2%}",
        )
        for each in chosen(results, "training")
    ]
    return markdown(("measurement", "training", "images/s", "longest wait for data"), rows)


def of_targets(results: Results) -> str:
    """The targets, what was measured last, and the command that measures."""
    rows = [
        (each.text, value or "not measured yet", {True: "met", False: "not met", None: ""}[met], f"`{each.measure}`")
        for each in targets
        for value, met in [each.judge(results)]
    ]  # fmt: skip
    return markdown(("target", "measured", "", "measure it"), rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "step-gpu": lambda results: step(results, gpu=True),
    "step-cpu": lambda results: step(results, gpu=False),
    "step-phases": phases,
    "data": data,
    "knn": knn,
    "parts": parts,
    "startup": startup,
    "scaling": scaling,
    "methods": methods,
    "paper": paper,
    "training": training,
    "targets": of_targets,
}
