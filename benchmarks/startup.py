"""Seconds from typing the first command of the README to its first step and to its end, by stages.

The stages are told from the lines that the run prints, so that another checkout, also an older one, can be measured
beside this one (`--against PATH`): both take turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ROOT
from benchmarks.timing import ratio

FIRST_STEP = "first step"
# Stage, and the text of the line that ends it. A run may have no evaluation.
STAGES = {
    "imports and configuration": "run folder: ",
    "data, model, tracking": ", at least ",
    "evaluation before the first step": "after step 0: ",
    FIRST_STEP: "step 1/",
    "further steps and evaluation": "finished in ",
}
END = "end of the program"
CPU = "CPU time of all processes"  # tells more than the clock where others use the machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout, measured in turns")
    parser.add_argument("--steps", type=int, default=20, help="trainer.max_steps; 0: the whole default run")
    parser.add_argument("--options", nargs="*", default=[], metavar="OPTION=VALUE", help="further options of the run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each checkout")


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.steps, args.repeats, args.options = 1, 1, [*args.options, "evaluators=[]"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON."""
    checkouts = {"this": ROOT} | ({"against": args.against.resolve()} if args.against else {})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    torch_alone = []
    for _ in range(args.repeats):
        torch_alone.append(seconds_of_import("torch"))
        for name, checkout in checkouts.items():
            runs[name].append(one_run(checkout, args.steps, args.options))
    result: dict[str, Any] = {
        "steps": args.steps,
        "options": args.options,
        "import_torch_seconds": median(torch_alone),
        "seconds": {
            name: {stage: median(run[stage] for run in each) for stage in each[0]} for name, each in runs.items()
        },
    }
    if args.against:
        result["against_commit"] = commit(args.against)
        result["times_as_fast_as_against"] = {
            stage: ratio([run[stage] for run in runs["against"]], [run[stage] for run in runs["this"]])
            for stage in ("to the first step", "in all", CPU)
        }
    return result


def one_run(checkout: Path, steps: int, options: list[str]) -> dict[str, float]:
    """Seconds of the stages of a run, to its first step, and in all."""
    words = [*options, "trainer.log_every_steps=1", *([f"trainer.max_steps={steps}"] if steps else [])]
    variables = {"PYTHONPATH": str(checkout / "src"), "PYTHONUNBUFFERED": "1"}
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        before, started = cpu_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "semaim.run", *words],
            cwd=folder,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        printed = []
        waiting = STAGES
        for line in process.stdout:
            printed.append(line)
            if stage := next((each for each, text in waiting.items() if text in line), None):
                times[stage] = time.perf_counter() - started
                waiting = dict(list(waiting.items())[list(waiting).index(stage) + 1 :])
        code = process.wait()
        times[END] = time.perf_counter() - started
    if code or FIRST_STEP not in times:
        raise RuntimeError(f"the run in {checkout} ended with exit code {code}:\n{''.join(printed[-20:])}")
    ends = [0.0, *times.values()]
    stages = {stage: end - begin for stage, begin, end in zip(times, ends, ends[1:], strict=False)}
    return stages | {"to the first step": times[FIRST_STEP], "in all": times[END], CPU: cpu_seconds() - before}


def cpu_seconds() -> float:
    """CPU time of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_of_import(module: str) -> float:
    """Seconds in which a new interpreter imports a module and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - started


def commit(checkout: Path) -> str | None:
    """The commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or None
