"""Time one pretraining step: the sorted, causal form of the model against the equivalent masked form.

    python benchmarks/pretrain_step.py --model base --batch-size 64 --map --json benchmarks/results/mine.json

All forms have the same weights, images and orders and alternate in one process, so that changes of clock or load affect
them equally. A step is: the semantic pass (with --map), the order, the target (pixels, or the tokens of --teacher, from
which the map is then computed too), forward, backward and AdamW. Its learning rate is zero: it computes everything but
leaves the weights unchanged. The script needs only torch and timm, and runs from a checkout without installation.

Shapes: B images, C channels, (H, W) pixels, L patches, K = L + 1 random numbers per image, P target channels.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tests.support.oracle import masked_predict

import semaim
from semaim.models.aim import AIM
from semaim.models.flops import cost
from semaim.models.token_cache import TokenCache
from semaim.permutations import AttentionCenter, Stochastic, noise_columns
from semaim.runs.provenance import code_version
from semaim.semantics import semantic_map
from semaim.targets import Pixels
from semaim.teachers import Teacher
from semaim.training.ddp import compile_blocks
from semaim.training.optimizers import parameter_groups


class Sizes(NamedTuple):
    """Architecture of a model."""

    embed_dim: int
    depth: int
    num_heads: int
    query_depth: int


# As in conf/model/aim_<name>.yaml; repeated because GPU machines may have no Hydra. A test compares them.
MODELS = {
    "tiny": Sizes(96, 4, 3, 2),
    "small": Sizes(384, 12, 6, 12),
    "base": Sizes(768, 12, 12, 12),
    "large": Sizes(1024, 24, 16, 12),
    "huge": Sizes(1280, 32, 16, 16),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the loss, relative


@dataclass(frozen=True)
class Form:
    """One form of the step: the encoder of the semantic pass, and (images, order) -> prediction (B, L, P)."""

    encoder: AIM
    predict: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """Inputs shared by all forms: images, random numbers, target, optimizer, precision."""

    images_BCHW: Tensor
    noise_BK: Tensor
    grid: tuple[int, int]
    target: Pixels | Teacher
    optimizer: Optimizer
    dtype: torch.dtype
    with_map: bool

    def autocast(self) -> torch.autocast:
        """The precision of training."""
        return torch.autocast(self.images_BCHW.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def passes(self, form: Form) -> TokenCache:
        """The passes without gradient in a step of a form."""
        teacher = {"teacher": self.target} if isinstance(self.target, Teacher) else {}
        return TokenCache({"online": form.encoder, **teacher}, self.images_BCHW)

    def map(self, passes: TokenCache) -> Tensor:
        """The semantic pass: (B, L)."""
        with torch.no_grad(), self.autocast():
            return semantic_map(passes.tokens(self.target.network_name or "online"))

    def loss(self, form: Form) -> Tensor:
        """Mean loss of the images, including order and target."""
        passes = self.passes(form)
        if self.with_map:
            order_BL = AttentionCenter().order(self.grid, self.noise_BK, self.map(passes))
        else:
            order_BL = Stochastic().order(self.grid, self.noise_BK)
        with self.autocast():
            target_BLP = self.target(self.images_BCHW, passes)
            prediction_BLP = form.predict(self.images_BCHW, order_BL)
            return self.target.loss(prediction_BLP, target_BLP).mean()

    def run(self, form: Form) -> None:
        """The whole step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(form).backward()
        self.optimizer.step()


def build(args: argparse.Namespace) -> tuple[AIM, dict[str, Form], Step]:
    """The model, its forms by name and the step."""
    torch.manual_seed(0)
    target: Pixels | Teacher = Pixels(args.patch_size)
    if args.teacher:
        grey = (0.5, 0.5, 0.5)  # weights and colours do not affect time
        target = Teacher(args.teacher, None, False, False, "data", args.patch_size, grey, grey)
        target.load()
        target.to(args.device)
    model = AIM(target.channels, args.image_size, args.patch_size, *MODELS[args.model]).to(args.device)
    attention = args.masked_attention
    forms = {"sorted": Form(model, model), "masked": Form(model, lambda x, o: masked_predict(model, x, o, attention))}
    if args.compile:
        # Another module with the same parameters: weights, gradients and optimizer states exist once.
        compiled = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        compile_blocks(compiled)
        forms["sorted, compiled"] = Form(compiled, compiled)
    images_BCHW = torch.randn(args.batch_size, 3, *model.image_size, device=args.device)
    noise_BK = torch.rand(args.batch_size, noise_columns(model.grid), device=args.device)
    optimizer = AdamW(parameter_groups(model, weight_decay=0.05), lr=0.0, betas=(0.9, 0.95), fused=True)
    return model, forms, Step(images_BCHW, noise_BK, model.grid, target, optimizer, args.dtype, args.map)


def time_action(action: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Duration of an action in seconds, and the peak of the bytes allocated on the GPU.

    On a CPU the second is None: see `peak_on_cpu`.
    """
    if device.type != "cuda":
        started = time.perf_counter()
        action()
        return time.perf_counter() - started, None
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started, torch.cuda.max_memory_allocated(device)


def peak_on_cpu(name: str) -> int:
    """Peak memory in bytes of a step of one form, without the built model, measured in a separate process.

    The system reports the peak of a whole process, not of each form.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def growth_of_peak(action: Callable[[], Any]) -> int:
    """Growth in bytes of this process's peak resident size over its current size, by an action."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Peak operations per second of this device: a large square matrix product, best of ten."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / min(time_action(lambda: a @ b, device)[0] for _ in range(10))


def measure(forms: dict[str, Form], step: Step, args: argparse.Namespace) -> dict[str, list[tuple[float, int | None]]]:
    """Seconds and peak memory of every repeat of each form's step, and of the semantic pass."""
    actions: dict[str, Callable[[], Any]] = {name: partial(step.run, form) for name, form in forms.items()}
    actions["semantic pass"] = lambda: step.map(step.passes(forms["sorted"]))
    rounds = []
    for index in range(args.warmup + args.repeats):
        print(f"\rround {index + 1} of {args.warmup + args.repeats}", end="", file=sys.stderr, flush=True)
        rounds.append({name: time_action(action, args.device) for name, action in actions.items()})
    print(file=sys.stderr)
    return {name: [each[name] for each in rounds[args.warmup :]] for name in actions}


def summary(repeats: list[tuple[float, int | None]], flops: int, peak: float, batch_size: int) -> dict[str, Any]:
    """Metrics of one form; `flops` are per image."""
    seconds = [s for s, _ in repeats]
    images_per_second = batch_size / statistics.median(seconds)
    return {
        "milliseconds": statistics.median(seconds) * 1e3,
        "milliseconds_of_repeats": [s * 1e3 for s in seconds],
        "images_per_second": images_per_second,
        "flops_per_second": images_per_second * flops,
        "share_of_matmul_peak": images_per_second * flops / peak,
        "peak_memory_bytes": max((m for _, m in repeats if m is not None), default=None),
    }


def speedup(form: dict[str, Any], masked: dict[str, Any]) -> dict[str, float]:
    """Ratio of the medians of the masked form and another, and the spread of the rounds' ratios."""
    rounds = [m / f for m, f in zip(masked["milliseconds_of_repeats"], form["milliseconds_of_repeats"], strict=True)]
    return {"median": masked["milliseconds"] / form["milliseconds"], "lowest": min(rounds), "highest": max(rounds)}


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """Date, hardware, versions, code and settings."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "unknown")
    settings = {k: str(v) if k in ("device", "dtype", "json") else v for k, v in vars(args).items()}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(["python", "benchmarks/pretrain_step.py", *sys.argv[1:]]),
        "hardware": {
            "gpu": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else None,
            "cpu": cpu,
            "cpu_cores": len(os.sched_getaffinity(0)),
            "torch_threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if args.device.type == "cuda" else None,
            "semaim": semaim.__version__,
        },
        **code_version(),
        "settings": settings | MODELS[args.model]._asdict(),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a text table."""
    rows = [("", "ms (median)", "lowest", "highest", "images/s", "GFLOP/s", "of peak", "memory", "x as fast", "rounds")]
    for name, form in result["forms"].items():
        times, memory = form["milliseconds_of_repeats"], form["peak_memory_bytes"]
        ratio = result["times_as_fast_as_masked"].get(name)
        rows.append((
            name, f"{form['milliseconds']:.1f}", f"{min(times):.1f}", f"{max(times):.1f}",
            f"{form['images_per_second']:.2f}", f"{form['flops_per_second'] / 1e9:.1f}",
            f"{form['share_of_matmul_peak']:.0%}", "n/a" if memory is None else f"{memory / 2**30:.2f} GiB",
            f"{ratio['median']:.3f}" if ratio else "", f"{ratio['lowest']:.3f}-{ratio['highest']:.3f}" if ratio else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def arguments() -> argparse.Namespace:
    """The command line, with device and precision resolved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--map", action="store_true", help="the order follows a semantic map computed in the step")
    parser.add_argument("--teacher", metavar="NAME", help="predict tokens of this model of timm's, with random weights")
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto", help="auto: bf16 on GPUs")
    parser.add_argument("--compile", action="store_true", help="also measure the sorted form with compiled blocks")
    parser.add_argument("--masked-attention", choices=["sdpa", "explicit"], default="sdpa")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--repeats", type=int, default=10, help="rounds that are")
    parser.add_argument(
        "--peak-of", metavar="FORM", help="only run a step of this form and print its peak memory (CPU)"
    )
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    cuda = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    args.device = torch.device("cuda" if cuda else "cpu")
    bf16 = cuda if args.precision == "auto" else args.precision == "bf16"
    args.dtype = torch.bfloat16 if bf16 else torch.float32
    return args


def main() -> int:
    """Check that the forms agree, measure them, print the result. Exit code 1 if they do not agree."""
    args = arguments()
    model, forms, step = build(args)
    if args.peak_of:
        print(growth_of_peak(partial(step.run, forms[args.peak_of])))
        return 0
    losses = {name: step.loss(form).item() for name, form in forms.items()}
    difference = max(abs(loss / losses["masked"] - 1) for loss in losses.values())
    print(f"loss {losses['masked']:.6f}; largest relative difference of another form {difference:.1e}")
    if difference > TOLERANCE[args.dtype]:
        print(f"the forms disagree: {losses}", file=sys.stderr)
        return 1

    teacher = step.target.flops(step.grid[0] * step.grid[1]) if isinstance(step.target, Teacher) else 0
    model_cost, peak = cost(model, int(args.map and not teacher), teacher), matmul_peak(args.device, args.dtype)
    semantic_pass = teacher or model_cost.encode
    measured = {
        name: summary(
            repeats, semantic_pass if name == "semantic pass" else model_cost.training_step, peak, args.batch_size
        )
        for name, repeats in measure(forms, step, args).items()
    }
    if args.device.type == "cpu":
        for name in forms:
            measured[name]["peak_memory_bytes"] = peak_on_cpu(name)
    result = environment(args) | {
        "losses": losses,
        "relative_loss_difference": difference,
        "flops_per_image": model_cost.training_step,
        "matmul_peak_flops_per_second": peak,
        "forms": measured,
        "times_as_fast_as_masked": {
            name: speedup(measured[name], measured["masked"]) for name in forms if name != "masked"
        },
    }
    print(
        f"{model_cost.training_step / 1e9:.4g} GFLOP per image and step; matrix products reach {peak / 1e9:.0f} GFLOP/s"
    )
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
