"""Memory of training on a process: computed from the sizes of a model, and measured."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import Block as ViTBlock
from torch import Tensor, nn

from semaim.models.layers import Block
from semaim.models.predictor import Predictor, Stream
from semaim.training.ddp import transformer_blocks
from semaim.training.optimizers import Optimization

FLOAT32 = 4  # bytes


def moments(optimization: Optimization, model: nn.Module) -> int:
    """Values that an optimizer stores per parameter: 2 for Adam; determined by a step on a test parameter.

    Raises:
        UserError: for invalid options of the optimizer, or groups that do not fit this model.
    """
    optimization.groups(model, optimization.weight_decay)
    parameter = nn.Parameter(torch.zeros(2, 3))
    group = {"params": [parameter], "weight_decay": optimization.weight_decay}
    optimizer = replace(optimization, groups=lambda *_: [group]).build(model)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return sum(
        isinstance(kept, Tensor) and kept.shape == parameter.shape for kept in optimizer.state[parameter].values()
    )


def training_memory(
    model: nn.Module,
    images: int,
    itemsize: int,
    moments: int,
    ema: bool,
    shards: int = 1,
    accumulates: bool = False,
    checkpointing: bool = False,
) -> int | None:
    """Upper bound of the bytes that training takes on a process, without those of CUDA and NCCL (1 to 2 GB).

    None for a model without the transformer blocks whose activations are known.

    With P parameters and m moments (values per parameter in the optimizer), in bytes,

        4 P (weights) + 4 P (gradients; with several processes in DDP's buckets) + 4 m P (optimizer)
        + 4 P (moving average, if there is one) + 2 P (weights in bf16 or fp16, if matrix products use it)
        + images x `activations` of an image.

    All gradients and activations are counted as allocated at the same time, which is nearly so with micro-batches. With
    FSDP a process has its part of these P, but for the activations, and in place of 2 P what is `gathered`. Between
    steps, evaluations have whole copies of the weights and of their moving average, but no activations to keep.

    Args:
        model: one that predicts patches, an encoder with a head, or another.
        images: in a micro-batch of a process.
        itemsize: bytes per value in matrix products: 4, or 2 for bf16 and fp16.
        moments: m, 2 for Adam.
        ema: whether there is a moving average.
        shards: processes that share each weight: all with FSDP, else 1.
        accumulates: whether a step has several micro-batches.
        checkpointing: whether activations inside of blocks are computed again.
    """
    if not isinstance(getattr(model, "blocks", [None])[0], Block | ViTBlock):
        return None
    parameters = size_of(model)
    kept = parameters * FLOAT32 * (2 + moments + ema) // shards
    step = images * activations(model, itemsize, checkpointing)
    if shards > 1:
        step += gathered(model, itemsize) + (parameters * FLOAT32 if accumulates else 0)
        return kept + max(step, parameters * FLOAT32 * (1 + ema))
    return kept + step + (parameters * itemsize if itemsize < FLOAT32 else 0)


def size_of(module: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def gathered(model: Any, itemsize: int) -> int:
    """Bytes of whole weights and gradients on a process with FSDP, besides those that wait for later micro-batches.

    These are all weights outside of blocks, the weights of a block and of the next one, and the gradients of two
    blocks, which are averaged in float32.
    """
    blocks = [size_of(block) for block in transformer_blocks(model)]
    outside = size_of(model) - sum(blocks)
    return (outside + 2 * max(blocks)) * itemsize + 2 * max(blocks) * (itemsize + FLOAT32)


def activations(model: Any, itemsize: int, checkpointing: bool = False) -> int:
    """Bytes that the forward pass of an image saves for the backward pass; within 3 % of what autograd saves.

    For each token, a block of width D and hidden width M saves the inputs of its two norms in float32 (8 D bytes), and
    in the type of the matrix products the inputs of qkv, proj and fc1, the queries, keys and values (6 D) and the
    inputs of the activation function and of fc2 (2 M). Attention saves 4 bytes per head and token, a norm 8 per token.
    A query block also saves its context, as one value of 4 bytes or two of 2 (for k and v). With activation
    checkpointing blocks save only their inputs, and one block at a time has the rest.
    """
    if not isinstance(model, Predictor):
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        return of_streams([Stream(model.blocks, tokens)], itemsize, checkpointing)
    total = of_streams(model.streams, itemsize, checkpointing)
    # Inputs of the linear layer after each stream that the next one does not read while it goes, and of the loss.
    for stream, after in zip(model.streams, [*model.streams[1:], None], strict=True):
        if after is None or not after.context:
            total += stream.tokens * itemsize * stream.width
    mlp = 2 * round(model.embed_dim * model.architecture["mlp_ratio"]) if model.architecture.get("head") == "mlp" else 0
    patches = model.grid[0] * model.grid[1]
    return total + patches * (itemsize * mlp + 2 * FLOAT32 * int(model.architecture["out_channels"]))


def of_streams(streams: list[Stream], itemsize: int, checkpointing: bool) -> int:
    """Bytes that stacks of blocks save, with the inputs of a norm after each; see `activations`."""
    total, largest = 0, 0
    for stream in streams:
        block: Any = stream.blocks[0]
        hidden, heads = block.mlp.fc1.out_features, block.attn.num_heads
        state, context = (tokens * stream.width * FLOAT32 for tokens in (stream.tokens, stream.context))
        kept = stream.tokens * (stream.width * (2 * FLOAT32 + 6 * itemsize) + hidden * 2 * itemsize + 4 * heads + 16)
        largest = max(largest, kept)
        blocks = len(stream.blocks)
        total += (blocks + 1) * state + context if checkpointing else blocks * (kept + context) + state
        total += blocks * context if stream.own_context else 0
    return total + largest if checkpointing else total


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has used: on a GPU those of tensors since the start of training, else all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
