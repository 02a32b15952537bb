"""One pretraining step in several forms (benchmarks/forms.py), alternating, and where its time goes.

A step is: semantic pass, order, pixel target, forward, backward, clipping, AdamW, as in SemAIM's recipe. The forms must
agree in the loss before anything is timed. Images stay on the device; the breakdown adds those of a real loader.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import ROOT, data
from benchmarks.forms import MODELS, Form, Step, add_step_arguments, build
from benchmarks.hardware import choose, dtype_of
from benchmarks.timing import Marks, alternating, busy_seconds, ratio, seconds_of
from semaim.core.distributed import usable_cpus
from semaim.models.flops import cost
from semaim.training.peak import measure as matrix_product_speed

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the loss, relative
REFERENCES = ("masked", "authors'")  # forms that the others are compared with
OURS = ("sorted", "sorted, compiled")


class FormsDisagree(Exception):
    """The forms compute different losses, so a comparison of their speed has no meaning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_step_arguments(parser)
    parser.add_argument("--forms", nargs="*", metavar="FORM", help="only these; default: all")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without the compiled form")
    parser.add_argument("--images", type=int, default=512, help="JPEG files for the breakdown; 0: no breakdown")
    parser.add_argument("--workers", type=int, help="loading processes for the breakdown; default: CPUs less one")
    parser.add_argument("--peak-of", metavar="FORM", help="only print the peak memory of a step of this form")


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.model, args.image_size, args.patch_size, args.batch_size, args.compile = "tiny", 32, 8, 2, False
    args.images, args.workers, args.warmup, args.repeats = 8, 0, 0, 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON.

    Raises:
        FormsDisagree: if the losses differ.
    """
    device = choose(args.device)
    dtype = dtype_of(args.precision, device)
    sizes = MODELS[args.model]
    all_forms, step = build(
        sizes, args.image_size, args.patch_size, args.batch_size, device, dtype, args.compile and args.peak_of is None
    )
    forms = {name: form for name, form in all_forms.items() if name in (args.forms or all_forms)}
    if args.peak_of is not None:
        return {"peak_memory_bytes": growth_of_peak(partial(step.run, all_forms[args.peak_of]))}
    losses = agreeing_losses(forms, step)
    peak, model_cost = matrix_product_speed(device, dtype).flops, cost(step.model, 1)
    seconds, of_phases, out_of_memory = rounds(forms, step, args)
    memory = {name: peak_memory(name, forms[name], step, args) for name in seconds}
    speed = {name: args.batch_size / median(each) for name, each in seconds.items()}
    flops = model_cost.training_step
    return {
        "settings": sizes._asdict()
        | {key: getattr(args, key) for key in ("model", "image_size", "patch_size", "batch_size", "repeats")}
        | {"dtype": str(dtype).removeprefix("torch.")},
        "losses": losses,
        "flops_per_image": flops,
        "matmul_peak_flops_per_second": peak,
        "forms": {
            name: {
                "milliseconds": median(each) * 1e3,
                "milliseconds_of_repeats": [s * 1e3 for s in each],
                "images_per_second": speed[name],
                "flops_per_second": speed[name] * flops,
                "share_of_matmul_peak": speed[name] * flops / peak,
                "peak_memory_bytes": memory[name],
                "phases": of_phases[name],
            }
            for name, each in seconds.items()
        },
        "out_of_memory": out_of_memory,
        "times_as_fast_as": {
            reference: {name: ratio(seconds[reference], each) for name, each in seconds.items() if name != reference}
            for reference in REFERENCES
            if reference in seconds
        },
        "breakdown": breakdown({name: forms[name] for name in OURS if name in seconds}, step, args),
    }


def agreeing_losses(forms: dict[str, Form], step: Step) -> dict[str, float]:
    """The losses of the forms; raises FormsDisagree if they differ."""
    losses = {name: step.loss_of(form) for name, form in forms.items()}
    first = next(iter(losses.values()))
    if max(abs(loss / first - 1) for loss in losses.values()) > TOLERANCE[step.dtype]:
        raise FormsDisagree(f"the forms disagree: {losses}")
    return losses


def rounds(
    forms: dict[str, Form], step: Step, args: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]], list[str]]:
    """Steps of the forms in turns.

    Returns:
        seconds of every repeat by form; milliseconds of the phases by form, medians, on a GPU with the time that it is
        `idle`; and the forms whose step does not fit into memory.
    """
    device, too_large = step.images_BCHW.device, []
    for name, form in forms.items():
        try:
            seconds_of(partial(step.run, form), device)
        except torch.OutOfMemoryError:
            too_large.append(name)
            form.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    fitting = {name: form for name, form in forms.items() if name not in too_large}
    marks: dict[str, list[Marks]] = {name: [] for name in fitting}

    def marked(name: str, form: Form) -> None:
        marks[name].append(Marks(device))
        step.run(form, mark=marks[name][-1])

    actions = {name: partial(marked, name, form) for name, form in fitting.items()}
    seconds = alternating(actions, device, args.warmup, args.repeats)
    phases = {}
    for name, form in fitting.items():
        found = [each.milliseconds() for each in marks[name][args.warmup :]]
        phases[name] = {phase: median(each[phase] for each in found) for phase in found[0]}
        phases[name]["whole"] = median(seconds[name]) * 1e3
        if device.type == "cuda":
            busy = busy_seconds(partial(step.run, form), device)
            phases[name]["idle"] = phases[name]["whole"] - busy * 1e3
    return seconds, phases, too_large


def breakdown(forms: dict[str, Form], step: Step, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds per step of consecutive steps with the images of a real loader, by form.

    "data" is the wait for a batch and its way to the device; "gaps" is what the phases do not explain.
    """
    if not args.images:
        return {}
    device = step.images_BCHW.device
    workers = max(1, usable_cpus() - 1) if args.workers is None else args.workers
    with tempfile.TemporaryDirectory() as folder:
        data.jpeg_folder(Path(folder), max(args.images, args.batch_size))
        batches = data.loader(Path(folder), args, device, workers)
        return {
            name: consecutive(partial(step.run, form), batches, args.repeats, device) for name, form in forms.items()
        }


def consecutive(run: Callable[..., None], batches: Iterator[Any], steps: int, device: torch.device) -> dict[str, float]:
    """Phases of consecutive steps, per step; the first two are not counted."""

    def some(count: int) -> Marks:
        marks = Marks(device)
        for _ in range(count):
            images_BCHW = data.on_device(next(batches), device)
            marks("data")
            run(images_BCHW=images_BCHW, mark=marks)
        return marks

    some(2)
    kept: list[Marks] = []
    whole = seconds_of(lambda: kept.append(some(steps)), device) * 1e3 / steps
    found = {phase: total / steps for phase, total in kept[0].milliseconds().items()}
    return found | {"gaps": whole - sum(found.values()), "whole": whole}


def peak_memory(name: str, form: Form, step: Step, args: argparse.Namespace) -> int | None:
    """Peak memory in bytes of a step: on a GPU what is allocated; on a CPU the growth of a process of its own.

    On a CPU the compiled form is not measured: the compiler would count.
    """
    device = step.images_BCHW.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        seconds_of(partial(step.run, form), device)
        return torch.cuda.max_memory_allocated(device)
    if name == "sorted, compiled" or args.small:
        return None
    command = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--peak-of", name]
    return int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def growth_of_peak(action: Callable[[], Any]) -> int:
    """Growth in bytes of this process's peak resident size over its current size, by an action."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
