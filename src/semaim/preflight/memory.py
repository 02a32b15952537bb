"""Bytes that training takes on a process, from the sizes of a model alone."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semaim.models.aim import AIM
from semaim.training.optimizers import Optimization

FLOAT32 = 4  # bytes


def moments(optimization: Optimization, model: nn.Module) -> int:
    """Numbers that an optimizer keeps for each parameter: 2 for Adam; found by a step on a parameter of its own.

    Raises:
        UserError: if the optimizer does not take its options, or its groups are not for this model.
    """
    optimization.groups(model, optimization.weight_decay)
    tried = nn.Parameter(torch.zeros(2, 3))
    alone = Optimization(
        optimization.optimizer,
        lambda _, weight_decay: [{"params": [tried], "weight_decay": weight_decay}],
        optimization.base_lr,
        optimization.min_lr,
        optimization.weight_decay,
    )
    optimizer = alone.build(model)
    tried.grad = torch.ones_like(tried)
    optimizer.step()
    return sum(isinstance(kept, Tensor) and kept.shape == tried.shape for kept in optimizer.state[tried].values())


def training_memory(model: AIM | VisionTransformer, images: int, number: int, moments: int, ema: bool) -> int:
    """Bytes that training takes at most on a process, without what CUDA and NCCL take for themselves (1 to 2 GB).

    With P parameters and m moments (numbers that the optimizer keeps for each of them), in bytes,

        4 P (weights) + 4 P (gradients; with several processes they lie in DDP's buckets) + 4 m P (optimizer)
        + 4 P (moving average, if there is one) + 2 P (weights in bf16 or fp16, if that is what is multiplied)
        + images x `activations` of an image.

    Gradients and activations are counted as if all were there at once, as they are nearly with micro-batches.

    Args:
        model: two-stream model, or an encoder with a head.
        images: in a micro-batch of a process.
        number: bytes of a number in matrix products: 4, or 2 for bf16 and fp16.
        moments: m, 2 for Adam.
        ema: whether a moving average is kept.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for_each = FLOAT32 * (2 + moments + ema) + (number if number < FLOAT32 else 0)
    return parameters * for_each + images * activations(model, number)


def activations(model: AIM | VisionTransformer, number: int) -> int:
    """Bytes that the forward pass of an image keeps for the backward pass; within 3 % of what autograd saves.

    For each token, a block of width D and hidden width M keeps the inputs of its two norms in float32 (8 D bytes), and
    as numbers of the matrix products the inputs of qkv, proj and fc1, the queries, keys and values (6 D) and the inputs
    of the activation function and of fc2 (2 M). Attention keeps 4 bytes per head and token, a norm 8 per token. A query
    block also keeps its context, as one number of 4 bytes or twice one of 2 (for k and v). With activation
    checkpointing blocks keep their inputs alone, and one of them at a time has the rest.
    """
    block: Any = model.blocks[0]
    width, hidden, heads = block.norm1.weight.numel(), block.mlp.fc1.out_features, block.attn.num_heads

    def kept(tokens: int) -> int:
        return tokens * (width * (2 * FLOAT32 + 6 * number) + hidden * 2 * number + 4 * heads + 16)

    if not isinstance(model, AIM):
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        return len(model.blocks) * kept(tokens) + tokens * width * FLOAT32
    patches = model.grid[0] * model.grid[1]
    state, depth, queries = patches * width * FLOAT32, len(model.blocks), len(model.query_blocks)
    sizes: dict[str, Any] = model.architecture
    mlp = 2 * hidden if sizes["head"] == "mlp" else 0
    head = state + patches * (number * (width + mlp) + 2 * FLOAT32 * sizes["out_channels"])
    if model.activation_checkpointing:
        return (depth + queries + 2) * state + kept(patches) + head
    return (depth + queries) * kept(patches) + (queries + 1) * state + head
