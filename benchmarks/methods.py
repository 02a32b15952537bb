"""A pretraining step of each method, alternating: images per second beside the floating-point operations.

A step is: order (with a semantic pass if it follows a map), target, forward, backward, clipping, AdamW. Images stay on
the device. All methods have an encoder of the same size and the target of normalised pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.forms import CLIP, MODELS, Sizes, add_step_arguments, autocast
from benchmarks.hardware import choose, dtype_of
from benchmarks.timing import alternating, ratio
from semaim.models.aim import AIM
from semaim.models.flops import cost
from semaim.models.mae import MAE
from semaim.models.predictor import Predictor
from semaim.models.simmim import SimMIM
from semaim.permutations import AttentionCenter, Permutation, Stochastic, noise_columns
from semaim.semantics import semantic_map
from semaim.targets import Pixels
from semaim.training.optimizers import parameter_groups

# Width, depth and heads of MAE's decoder for each encoder, as in conf/model/mae_<name>.yaml; a test compares them.
DECODERS = {
    "tiny": (48, 2, 3),
    "small": (192, 8, 6),
    "base": (512, 8, 16),
    "large": (512, 8, 16),
    "huge": (512, 8, 16),
}
SEGMENTS = 11  # as in experiments/randsac_vitb_1600ep.yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_step_arguments(parser)


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.model, args.image_size, args.patch_size, args.batch_size = "tiny", 32, 8, 2
    args.warmup, args.repeats = 0, 2


@dataclass(frozen=True)
class Method:
    """A model, the order of its images, and what a step of them does."""

    model: Predictor
    order: Permutation
    optimizer: torch.optim.Optimizer

    @property
    def flops(self) -> int:
        """Floating-point operations of a step per image."""
        return cost(self.model, int(self.order.needs_map)).training_step

    def step(self, images_BCHW: torch.Tensor, target: Pixels, dtype: torch.dtype) -> None:
        """A whole step."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(images_BCHW.device, dtype):
            map_BL = None
            if self.order.needs_map:
                with torch.no_grad():
                    map_BL = semantic_map(self.model.encode(images_BCHW))
            grid = self.model.grid
            noise_BK = torch.rand(len(images_BCHW), noise_columns(grid), device=images_BCHW.device)
            target_BLP = target(images_BCHW)
            prediction = self.model(images_BCHW, self.order.order(grid, noise_BK, map_BL))
            loss = prediction.mean(target.loss(prediction.predictions_BLP, target_BLP)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()


def methods(sizes: Sizes, decoder: tuple[int, int, int], image_size: int, patch_size: int) -> dict[str, Any]:
    """A function that builds the model of each method, and its order, by name."""
    shape: dict[str, Any] = {"out_channels": 3 * patch_size**2, "image_size": image_size, "patch_size": patch_size}
    shape |= {key: getattr(sizes, key) for key in ("embed_dim", "depth", "num_heads")}
    aim = partial(AIM, **shape, query_depth=sizes.query_depth)
    return {
        "SemAIM": (aim, AttentionCenter()),
        "SAIM": (aim, Stochastic()),
        f"RandSAC-{SEGMENTS}": (partial(aim, segments=SEGMENTS), Stochastic()),
        "MAE": (
            partial(MAE, **shape, decoder_dim=decoder[0], decoder_depth=decoder[1], decoder_num_heads=decoder[2]),
            Stochastic(),
        ),
        "SimMIM": (partial(SimMIM, **shape), Stochastic()),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON."""
    device = choose(args.device)
    dtype = dtype_of(args.precision, device)
    torch.manual_seed(0)
    target, sizes = Pixels(args.patch_size), MODELS[args.model]
    images_BCHW = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    built = {}
    for name, (make, order) in methods(sizes, DECODERS[args.model], args.image_size, args.patch_size).items():
        model = make().to(device)
        built[name] = Method(model, order, torch.optim.AdamW(parameter_groups(model, 0.05), lr=0.0, fused=True))
    steps: dict[str, Callable[[], None]] = {
        name: partial(method.step, images_BCHW, target, dtype) for name, method in built.items()
    }
    seconds = alternating(steps, device, args.warmup, args.repeats)
    speed = {name: args.batch_size / median(each) for name, each in seconds.items()}
    return {
        "settings": sizes._asdict()
        | {key: getattr(args, key) for key in ("model", "image_size", "patch_size", "batch_size", "repeats")}
        | {"dtype": str(dtype).removeprefix("torch.")},
        "methods": {
            name: {
                "flops_per_image": method.flops,
                "images_per_second": speed[name],
                "flops_per_second": speed[name] * method.flops,
                "times_as_fast_as_SemAIM": ratio(seconds["SemAIM"], seconds[name]),
            }
            for name, method in built.items()
        },
    }
