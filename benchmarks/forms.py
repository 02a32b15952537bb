"""The forms of the pretraining step that are compared: the same loss of the same weights, computed in different ways.

* sorted: semaim's. Patches in prediction order, causal attention, no mask; and the same with compiled blocks.
* masked: patches in raster order, a boolean mask for each image and stream for torch's attention
  (tests/support/oracle.py).
* authors': the way of SemAIM's code, written from the description of the method. The semantic pass runs in float32
  outside autocast, and its last block twice: for its attention and for its tokens. Masks are added to the scores,
  (B, 1, N, N) in float32 for each stream, and the softmax is explicit. AdamW is torch's default.

Shapes: B images, C channels, H x W pixels (H heads in attention), L patches, N = 1 + L tokens, D width, K = D / H,
P target channels.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from tests.support.oracle import masked_predict, masks_from_order
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from semaim.models.aim import AIM
from semaim.models.layers import CrossAttention, SelfAttention
from semaim.permutations import AttentionCenter, noise_columns
from semaim.semantics import semantic_map
from semaim.targets import Pixels
from semaim.training.ddp import compile_blocks
from semaim.training.optimizers import parameter_groups

CLIP = 3.0  # norm of the gradient; SemAIM's
Predict = Callable[[Tensor, Tensor], Tensor]


class Sizes(NamedTuple):
    """Architecture of a model."""

    embed_dim: int
    depth: int
    num_heads: int
    query_depth: int


# As in conf/model/aim_<name>.yaml; repeated because a GPU machine may have no Hydra. A test compares them.
MODELS = {
    "tiny": Sizes(96, 4, 3, 2),
    "small": Sizes(384, 12, 6, 12),
    "base": Sizes(768, 12, 12, 12),
    "large": Sizes(1024, 24, 16, 12),
    "huge": Sizes(1280, 32, 16, 16),
}


def unmarked(phase: str) -> None:
    """The end of a phase that is not recorded."""


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that time a step or parts of it."""
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto", help="auto: bf16 on GPUs")
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--repeats", type=int, default=10, help="rounds that are")


@dataclass(frozen=True)
class Form:
    """One form of the step.

    Args:
        tokens: images to the encoder's tokens (B, N, D), in the precision that the form chooses.
        predict: images and order to predictions (B, L, P), in autocast.
        optimizer: updates the weights, which all forms share. Its learning rate is zero, so that they stay the same.
    """

    tokens: Callable[[Tensor], Tensor]
    predict: Predict
    optimizer: Optimizer


@dataclass(frozen=True)
class Step:
    """What all forms share: images, random numbers, target, precision."""

    model: AIM
    images_BCHW: Tensor
    noise_BK: Tensor
    target: Pixels
    dtype: torch.dtype

    def run(self, form: Form, images_BCHW: Tensor | None = None, mark: Callable[[str], None] = unmarked) -> None:
        """The whole step of a form.

        Args:
            form: the form.
            images_BCHW: other images than those of this object.
            mark: called at the end of each phase with its name.
        """
        images_BCHW = self.images_BCHW if images_BCHW is None else images_BCHW
        form.optimizer.zero_grad(set_to_none=True)
        map_BL = self.map(form, images_BCHW)
        mark("semantic pass")
        loss = self.loss(form, images_BCHW, map_BL)
        mark("forward")
        loss.backward()
        mark("backward")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        form.optimizer.step()
        mark("optimizer")

    def map(self, form: Form, images_BCHW: Tensor) -> Tensor:
        """The semantic pass: (B, L)."""
        with torch.no_grad():
            return semantic_map(form.tokens(images_BCHW))

    def loss(self, form: Form, images_BCHW: Tensor, map_BL: Tensor) -> Tensor:
        """Mean loss of the images, including order and target."""
        order_BL = AttentionCenter().order(self.model.grid, self.noise_BK, map_BL)
        with autocast(images_BCHW.device, self.dtype):
            target_BLP = self.target(images_BCHW)
            return self.target.loss(form.predict(images_BCHW, order_BL), target_BLP).mean()

    def loss_of(self, form: Form) -> float:
        """The loss of a form, semantic pass included."""
        return self.loss(form, self.images_BCHW, self.map(form, self.images_BCHW)).item()


def build(
    sizes: Sizes, image_size: int, patch_size: int, batch_size: int, device: torch.device, dtype: torch.dtype,
    compiled: bool,
) -> tuple[dict[str, Form], Step]:  # fmt: skip
    """The forms by name, and the step."""
    torch.manual_seed(0)
    target = Pixels(patch_size)
    model = AIM(target.channels, image_size, patch_size, *sizes).to(device)
    groups = partial(parameter_groups, model, weight_decay=0.05)
    fused = AdamW(groups(), lr=0.0, betas=(0.9, 0.95), fused=True)
    plain = AdamW(groups(), lr=0.0, betas=(0.9, 0.95))
    tokens = partial(_tokens, model, dtype)
    forms = {
        "sorted": Form(tokens, model.predict, fused),
        "masked": Form(tokens, partial(_masked, model), fused),
        "authors'": Form(partial(authors_tokens, model), partial(authors_predict, model), plain),
    }
    if compiled:
        # Another module with the same parameters: weights, gradients and optimizer states exist once.
        other = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        compile_blocks(other)
        forms["sorted, compiled"] = Form(partial(_tokens, other, dtype), other.predict, fused)
    images_BCHW = torch.randn(batch_size, 3, *model.image_size, device=device)
    noise_BK = torch.rand(batch_size, noise_columns(model.grid), device=device)
    return forms, Step(model, images_BCHW, noise_BK, target, dtype)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The precision of training."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _tokens(model: AIM, dtype: torch.dtype, images_BCHW: Tensor) -> Tensor:
    with autocast(images_BCHW.device, dtype):
        return model.encode(images_BCHW)


def _masked(model: AIM, images_BCHW: Tensor, order_BL: Tensor) -> Tensor:
    return masked_predict(model, images_BCHW, order_BL, "sdpa")


def authors_tokens(model: AIM, images_BCHW: Tensor) -> Tensor:
    """The tokens (B, N, D) of the authors' semantic pass."""
    blocks: list[Any] = list(model.blocks)
    last = blocks.pop()
    x_BND = _embedded(model, images_BCHW)
    for block in blocks:
        x_BND = _block(block, x_BND, None)
    _weights(*_heads(last.attn, last.norm1(x_BND))[:2], None)
    return model.norm(_block(last, x_BND, None))


def authors_predict(model: AIM, images_BCHW: Tensor, order_BL: Tensor) -> Tensor:
    """Predictions (B, L, P), raster-indexed, with masks that are added to the scores and an explicit softmax."""
    content_mask, query_mask = (
        torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
        for mask in masks_from_order(order_BL)
    )
    content_BND = _embedded(model, images_BCHW)
    query_BND = model.pos_embed.expand(len(images_BCHW), -1, -1)
    queries = iter(model.query_blocks)
    for depth, block in enumerate(model.blocks, start=1):
        content_BND = _block(block, content_BND, content_mask)
        if depth % model.read_every == 0:
            query_BND = _query_block(next(queries), query_BND, content_BND, query_mask)
    return model.prediction_head(model.norm(query_BND))[:, 1:]  # the query in the slot of cls predicts nothing


def _embedded(model: AIM, images_BCHW: Tensor) -> Tensor:
    patches_BLD = model.patch_embed(images_BCHW)
    return torch.cat([model.cls_token.expand(len(patches_BLD), -1, -1), patches_BLD], dim=1) + model.pos_embed


def _block(block: Any, x_BND: Tensor, mask: Tensor | None) -> Tensor:
    x_BND = x_BND + _attention(block.attn, *_heads(block.attn, block.norm1(x_BND)), mask)
    return x_BND + block.mlp(block.norm2(x_BND))


def _query_block(block: Any, query_BND: Tensor, content_BND: Tensor, mask: Tensor) -> Tensor:
    attention: CrossAttention = block.attn
    query, context = block.norm1(query_BND), block.norm1(content_BND)
    projected = ((attention.q, query), (attention.k, context), (attention.v, context))
    q, k, v = (linear(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for linear, x in projected)
    query_BND = query_BND + _attention(attention, q, k, v, mask)
    return query_BND + block.mlp(block.norm2(query_BND))


def _heads(attention: SelfAttention, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = attention.qkv(x_BND).chunk(3, dim=-1)
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def _weights(q_BHNK: Tensor, k_BHNK: Tensor, mask: Tensor | None) -> Tensor:
    scores_BHNN = q_BHNK @ k_BHNK.transpose(-2, -1) * q_BHNK.shape[-1] ** -0.5
    return (scores_BHNN if mask is None else scores_BHNN + mask).softmax(dim=-1)


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    projection: nn.Linear = module.proj
    return projection((_weights(q, k, mask) @ v).transpose(1, 2).flatten(2))
