"""Data-parallel training over several processes of this machine (weak scaling), beside what the model on paper says.

Each round has a step of one process while the others wait, a step of all without communication, one with it, and an
all-reduce of one flat tensor. The first gives the speed of a single process under the same load; the last the bandwidth
from which benchmarks/communication.py predicts the step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.communication import GRADIENT_BYTES, exposed_seconds, ring_bytes
from benchmarks.forms import MODELS, autocast
from benchmarks.hardware import choose, dtype_of
from benchmarks.timing import Marks, seconds_of
from semaim.core.distributed import usable_cpus
from semaim.models.aim import AIM
from semaim.models.predictor import Prediction
from semaim.targets import Pixels
from semaim.training.ddp import DeterministicDDP
from semaim.training.optimizers import parameter_groups

WARMUP = 2  # rounds that are not counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--model", choices=MODELS, help="default: base on a GPU, tiny on a CPU")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64, help="images of each process")
    parser.add_argument("--processes", type=int, nargs="*", help="default: 2, 4, 8 GPUs, as there are; 2 on a CPU")
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto", help="auto: bf16 on GPUs")
    parser.add_argument("--repeats", type=int, default=10)


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.model, args.image_size, args.patch_size, args.batch_size, args.repeats = "tiny", 32, 8, 2, 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON."""
    device = choose(args.device)
    cuda = device.type == "cuda"
    args.model = args.model or ("base" if cuda else "tiny")
    counts = args.processes or [n for n in (2, 4, 8) if n <= (torch.cuda.device_count() if cuda else 2)] or [1]
    settings = {key: getattr(args, key) for key in ("model", "image_size", "patch_size", "batch_size", "repeats")}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            spawn(_process, (count, max(counts), args, folder), nprocs=count)
        rows = [json.loads(Path(folder, f"{count}.json").read_text()) for count in counts]
    return {"settings": settings, "backend": "nccl" if cuda else "gloo", "processes": rows}


def _process(rank: int, count: int, largest: int, args: argparse.Namespace, folder: str) -> None:
    """One process of the group; the first writes the result."""
    cuda = choose(args.device).type == "cuda"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, usable_cpus() // largest))
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{folder}/group_{count}", rank=rank, world_size=count
    )
    try:
        result = _measured(count, args, device)
        if rank == 0:
            Path(folder, f"{count}.json").write_text(json.dumps(result))
    finally:
        dist.destroy_process_group()


def _measured(count: int, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    target, sizes = Pixels(args.patch_size), MODELS[args.model]
    model = AIM(target.channels, args.image_size, args.patch_size, *sizes).to(device)
    ddp = DeterministicDDP(model, [device.index] if device.index is not None else None, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=0.0, fused=True)
    images_BCHW = torch.randn(args.batch_size, 3, *model.image_size, device=device)
    order_BL = torch.rand(args.batch_size, model.grid[0] * model.grid[1], device=device).argsort(1)
    marks: list[Marks] = []  # of the steps without communication

    def step(forward: Callable[..., Prediction]) -> Marks:
        mark = Marks(device)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype_of(args.precision, device)):
            loss = target.loss(forward(images_BCHW, order_BL).predictions_BLP, target(images_BCHW)).mean()
        mark("forward")
        loss.backward()
        mark("backward")
        optimizer.step()
        return mark

    def local() -> None:
        with ddp.no_sync() if count > 1 else nullcontext():
            marks.append(step(ddp))

    parameters = sum(p.numel() for p in model.parameters())
    flat = torch.zeros(parameters, device=device)
    actions: dict[str, Callable[[], Any]] = {
        "alone": lambda: step(model) if dist.get_rank() == 0 else None,
        "without communication": local,
        "whole": lambda: step(ddp),
        "all-reduce": lambda: dist.all_reduce(flat),
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for index in range(args.repeats + WARMUP):
        for name, action in actions.items():
            dist.barrier()
            duration = seconds_of(action, device)
            if index >= WARMUP:
                seconds[name].append(duration)
    medians = {name: median(each) for name, each in seconds.items()}
    medians["backward"] = median(each.milliseconds()["backward"] for each in marks[WARMUP:]) / 1e3
    return _summary(count, args.batch_size, parameters, medians, overlaps=device.type == "cuda")


def _summary(count: int, batch_size: int, parameters: int, seconds: dict[str, float], overlaps: bool) -> dict[str, Any]:
    gradient_bytes = GRADIENT_BYTES * parameters
    result = {
        "processes": count,
        "parameters": parameters,
        "seconds": seconds,
        "images_per_second": count * batch_size / seconds["whole"],
        "efficiency": seconds["alone"] / seconds["whole"],
        "communication_share": 1 - seconds["without communication"] / seconds["whole"],
    }
    if count == 1:
        return result
    # A CPU computes and communicates with the same cores, so that nothing is hidden.
    exposed = exposed_seconds(seconds["all-reduce"], seconds["backward"] if overlaps else 0.0, gradient_bytes)
    predicted = seconds["without communication"] + exposed
    return result | {
        "all_reduce_bytes_per_second": ring_bytes(gradient_bytes, count) / seconds["all-reduce"],
        "predicted_seconds": predicted,
        "measured_over_predicted": seconds["whole"] / predicted,
    }
