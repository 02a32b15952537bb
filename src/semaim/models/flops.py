"""Cost of a model: parameters and floating-point operations per image.

Only matrix products are counted (a multiplication and an addition are two operations), with dense attention: the
convention of torch's FlopCounterMode and of published figures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer

from semaim.models.aim import AIM


def matrix_product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products on a device, an upper bound for training."""
    size, seconds = (8192, 0.2) if device.type == "cuda" else (512, 0.05)
    square = torch.ones(size, size, device=device, dtype=dtype)

    def elapsed(repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            product = square @ square
        product[0, 0].item()  # synchronises with the device
        return time.perf_counter() - started

    once = elapsed(2) / 2
    repeats = max(2, round(seconds / once))
    return 2 * size**3 * repeats / elapsed(repeats)


@dataclass(frozen=True)
class Cost:
    """Parameters, and floating-point operations per image."""

    encoder_parameters: int
    parameters: int
    encode: int  # the encoder without mask: evaluation, semantic maps and feature targets
    predict: int  # forward pass of both streams and the head
    training_step: int  # forward and backward, plus the passes without gradient


def cost(model: AIM, encoder_passes: int, teacher: int = 0) -> Cost:
    """Compute the cost of a two-stream model from its sizes alone; the model may be on the meta device.

    The backward pass counts twice the forward pass (once for the patch embedding, whose input needs no gradient).
    Recomputation by fused attention or activation checkpointing is not counted.

    Args:
        model: the two-stream model.
        encoder_passes: encoder passes without gradient per training step, for example 1 if the order needs a map.
        teacher: operations per image of a teacher's pass, if there is one.
    """
    dim, patches = model.embed_dim, model.grid[0] * model.grid[1]
    linear = {name: p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and name != "cls_token"}

    def weights(prefix: str) -> int:
        return sum(size for name, size in linear.items() if name.startswith(prefix))

    embed = 2 * patches * weights("patch_embed.")

    def content(tokens: int) -> int:
        return 2 * tokens * weights("blocks.") + len(model.blocks) * 4 * tokens * tokens * dim

    query = 2 * patches * weights("query_blocks.") + len(model.query_blocks) * 4 * patches * patches * dim
    encode = embed + content(patches + 1)
    predict = embed + content(patches) + query + 2 * patches * weights("prediction_head.")
    encoder = ("patch_embed.", "cls_token", "blocks.", "norm.")
    return Cost(
        encoder_parameters=sum(p.numel() for name, p in model.named_parameters() if name.startswith(encoder)),
        parameters=sum(p.numel() for p in model.parameters()),
        encode=encode,
        predict=predict,
        training_step=3 * predict - embed + encoder_passes * encode + teacher,
    )


def encoder_cost(vit: VisionTransformer, patches: int | None = None) -> Cost:
    """Compute the cost of an encoder: `predict` is a forward pass with its head, `training_step` is fine-tuning.

    Args:
        vit: the encoder.
        patches: patches per image; default: those of the encoder's own image size.
    """
    linear = {name: p.numel() for name, p in vit.named_parameters() if p.ndim >= 2}
    patches = patches or vit.patch_embed.num_patches
    tokens = patches + vit.num_prefix_tokens

    def weights(prefix: str) -> int:
        return sum(size for name, size in linear.items() if name.startswith(prefix))

    embed, head = 2 * patches * weights("patch_embed."), sum(p.numel() for p in vit.head.parameters())
    encode = embed + 2 * tokens * weights("blocks.") + len(vit.blocks) * 4 * tokens * tokens * vit.embed_dim
    parameters = sum(p.numel() for name, p in vit.named_parameters() if name != "pos_embed")
    predict = encode + 2 * weights("head.")
    return Cost(parameters - head, parameters, encode, predict, 3 * predict - embed)
