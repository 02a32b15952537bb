"""Time parts of the pretraining step beside other ways to compute the same, before one of them enters the model.

    python -m benchmarks parts --model base --batch-size 64

Each part is timed as the model computes it now ("present") and in other ways, forward and backward, alternating in one
process. The gain is the saved time of all calls of a step, as a share of the present time of a whole step. Results of
the ways are compared first; a way that computes something else is not timed.

Shapes: B images, C channels, (H, W) pixels, L patches, D width, K = D / heads, P target channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from benchmarks.forms import MODELS, add_step_arguments, autocast, build
from benchmarks.hardware import choose, dtype_of
from benchmarks.timing import alternating, ratio
from semaim.models.aim import AIM
from semaim.models.layers import LAYER_NORM_EPS, attend, gather_rows
from semaim.targets import patchify
from semaim.training.optimizers import parameter_groups

PRESENT = "present"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of results and gradients, relative to the largest value


@dataclass(frozen=True)
class Part:
    """A part of the step.

    Attributes:
        name: what it computes.
        calls: how often a step computes it.
        inputs: of each way, with gradients where a step needs them.
        ways: functions of the inputs, by name; the first is the present one.
    """

    name: str
    calls: int
    inputs: tuple[Tensor, ...]
    ways: Mapping[str, Callable[..., tuple[Tensor, ...]]]

    def run(self, way: str) -> tuple[Tensor, ...]:
        """Results and gradients of a way."""
        found = self.ways[way](*self.inputs)
        wanted = [each for each in self.inputs if each.requires_grad]
        if not wanted:
            return found
        return (
            *(each.detach() for each in found),
            *torch.autograd.grad(found, wanted, list(map(torch.ones_like, found))),
        )


def key_value_part(model: AIM, context_BLD: Tensor) -> Part:
    """Keys and values of a query block: two products, or one with the weights beside each other."""
    weights = [
        model.get_parameter(f"query_blocks.0.attn.{name}") for name in ("k.weight", "k.bias", "v.weight", "v.bias")
    ]

    def two(x: Tensor, wk: Tensor, bk: Tensor, wv: Tensor, bv: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, wk, bk), F.linear(x, wv, bv)

    def one(x: Tensor, wk: Tensor, bk: Tensor, wv: Tensor, bv: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, torch.cat([wk, wv]), torch.cat([bk, bv])).chunk(2, -1)

    inputs = (context_BLD.detach().requires_grad_(), *weights)
    return Part("keys and values of a query block", len(model.query_blocks), inputs, {PRESENT: two, "one product": one})


def patch_embedding_part(model: AIM, images_BCHW: Tensor) -> Part:
    """Patch embedding: a convolution, one in channels-last layout, or a product of patches."""
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias
    side = model.patch_size

    def convolution(images: Tensor, weight: Tensor, bias: Tensor, layout: torch.memory_format) -> tuple[Tensor]:
        weight = weight.contiguous(memory_format=layout)
        tokens = F.conv2d(images.contiguous(memory_format=layout), weight, bias, stride=side)
        return (tokens.flatten(2).transpose(1, 2),)

    def product(images: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (F.linear(patchify(images, side), weight.permute(0, 2, 3, 1).flatten(1), bias),)

    ways: dict[str, Callable[..., tuple[Tensor]]] = {
        PRESENT: partial(convolution, layout=torch.contiguous_format),
        "channels last": partial(convolution, layout=torch.channels_last),
        "product of patches": product,
    }
    return Part("patch embedding", 1, (images_BCHW, weight, bias), ways)


def sorting_part(tokens_BLD: Tensor, order_BL: Tensor) -> Part:
    """Rows in prediction order: gather, whose gradient adds, or one whose gradient gathers by the inverse order."""

    class Permuted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
            ctx.save_for_backward(order)
            return gather_rows(x, order)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return gather_rows(gradient, ctx.saved_tensors[0].argsort(1)), None

    inputs = (tokens_BLD.detach().requires_grad_(), order_BL)
    ways = {PRESENT: lambda *each: (gather_rows(*each),), "gradient gathers": lambda *each: (Permuted.apply(*each),)}
    return Part("rows in prediction order", 2, inputs, ways)


def norm_part(model: AIM, tokens_BLD: Tensor) -> Part:
    """A norm and the product that reads it; the norm in float32 (autocast), or in the precision of its input."""
    names = ("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias")
    weights = [model.get_parameter(f"blocks.0.{name}") for name in names]

    def plain(x: Tensor, w: Tensor, b: Tensor, wp: Tensor, bp: Tensor) -> tuple[Tensor]:
        return (F.linear(F.layer_norm(x, w.shape, w, b, LAYER_NORM_EPS), wp, bp),)

    def low(x: Tensor, w: Tensor, b: Tensor, wp: Tensor, bp: Tensor) -> tuple[Tensor]:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        with torch.autocast(x.device.type, enabled=False):
            normed = F.layer_norm(x.to(dtype), w.shape, w.to(dtype), b.to(dtype), LAYER_NORM_EPS)
        return (F.linear(normed, wp, bp),)

    calls = 2 * len(model.blocks) + 3 * len(model.query_blocks) + 1
    inputs = (tokens_BLD.detach().requires_grad_(), *weights)
    return Part("norm and the product after it", calls, inputs, {PRESENT: plain, "norm in bf16": low})


def attention_part(model: AIM, tokens_BLD: Tensor, dtype: torch.dtype) -> Part:
    """Causal attention: the kernel that torch chooses, and each of the others that this device has."""
    heads = int(model.architecture["num_heads"])
    shape = (len(tokens_BLD), heads, tokens_BLD.shape[1], tokens_BLD.shape[2] // heads)
    inputs = tuple(torch.randn(shape, device=tokens_BLD.device, dtype=dtype, requires_grad=True) for _ in range(3))

    def with_kernel(kernel: SDPBackend | None, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        with sdpa_kernel([kernel]) if kernel is not None else nullcontext():
            return (attend(q, k, v, True),)

    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
               "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "plain": SDPBackend.MATH}  # fmt: skip
    ways = {PRESENT: partial(with_kernel, None)}
    for name, kernel in kernels.items():
        way = partial(with_kernel, kernel)
        try:
            way(*inputs)
        except RuntimeError:  # not on this device
            continue
        ways[name] = way
    return Part("attention", len(model.blocks) + len(model.query_blocks), inputs, ways)


def clipping_part(model: AIM) -> Part:
    """Norm of all gradients: over lists of tensors at once, or one after another."""
    gradients = tuple(torch.randn_like(each) for each in model.parameters() if each.requires_grad)

    def norm(*each: Tensor, foreach: bool | None) -> tuple[Tensor]:
        return (torch.nn.utils.get_total_norm(list(each), foreach=foreach),)

    ways = {PRESENT: partial(norm, foreach=None), "one after another": partial(norm, foreach=False)}
    return Part("norm of the gradient", 1, gradients, ways)


def optimizer_part(model: AIM) -> Part:
    """AdamW with a learning rate of zero: one kernel, lists of tensors, or one tensor after another."""
    device = next(model.parameters()).device
    flag = torch.zeros((), device=device)

    def update(optimizer: AdamW, flag: Tensor) -> tuple[Tensor]:
        optimizer.step()
        return (flag,)

    for each in model.parameters():
        each.grad = torch.randn_like(each)
    kinds: dict[str, dict[str, Any]] = {
        PRESENT: {"fused": True}, "lists of tensors": {"foreach": True}, "one after another": {"foreach": False}
    }  # fmt: skip
    ways = {name: partial(update, AdamW(parameter_groups(model, 0.05), lr=0.0, **kind)) for name, kind in kinds.items()}
    return Part("AdamW", 1, (flag,), ways)


def parts(model: AIM, batch_size: int, dtype: torch.dtype, device: torch.device) -> list[Part]:
    """All parts, at the sizes of a model."""
    images_BCHW = torch.randn(batch_size, 3, *model.image_size, device=device)
    length, width = model.grid[0] * model.grid[1], model.embed_dim
    tokens_BLD = torch.randn(batch_size, length, width, device=device)
    order_BL = torch.rand(batch_size, length, device=device).argsort(1)
    return [
        key_value_part(model, tokens_BLD),
        patch_embedding_part(model, images_BCHW),
        sorting_part(tokens_BLD, order_BL),
        norm_part(model, tokens_BLD),
        attention_part(model, tokens_BLD, dtype),
        clipping_part(model),
        optimizer_part(model),
    ]


def agree(part: Part, way: str, dtype: torch.dtype) -> bool:
    """Whether a way computes what the present one does, gradients included."""
    return all(
        torch.allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()) + 1e-12)
        for expected, found in zip(part.run(PRESENT), part.run(way), strict=True)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_step_arguments(parser)


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.model, args.image_size, args.patch_size, args.batch_size, args.warmup, args.repeats = "tiny", 32, 8, 2, 0, 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON."""
    device = choose(args.device)
    dtype = dtype_of(args.precision, device)
    forms, step = build(
        MODELS[args.model], args.image_size, args.patch_size, args.batch_size, device, dtype, compiled=False
    )
    (whole,) = alternating({"": lambda: step.run(forms["sorted"])}, device, args.warmup, args.repeats).values()
    rows = []
    for part in parts(step.model, args.batch_size, dtype, device):
        with autocast(device, dtype):
            actions = {way: partial(part.run, way) for way in part.ways if agree(part, way, dtype)}
            seconds = alternating(actions, device, args.warmup, args.repeats)
        for way in part.ways:
            row: dict[str, Any] = {"part": part.name, "way": way, "calls": part.calls}
            if way in seconds:  # else it computes something else
                saved = part.calls * (median(seconds[PRESENT]) - median(seconds[way]))
                row |= {"milliseconds": 1e3 * median(seconds[way]), "gain_of_step": saved / median(whole),
                        "times_as_fast": ratio(seconds[PRESENT], seconds[way])}  # fmt: skip
            rows.append(row)
    settings = {"model": args.model, "batch_size": args.batch_size, "precision": str(dtype).removeprefix("torch.")}
    return {"settings": settings, "step_milliseconds": 1e3 * median(whole), "parts": rows}
