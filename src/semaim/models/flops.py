"""Cost of a model: parameters and floating-point operations per image.

Torch's FlopCounterMode counts the matrix products of a forward pass (a multiplication and an addition are two
operations), with dense attention: the convention of published figures. The backward pass counts twice the forward pass,
once for the patch embedding, whose input needs no gradient. Recomputation by fused attention or activation
checkpointing is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from semaim.models.predictor import Predictor

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """Parameters, and floating-point operations per image."""

    encoder_parameters: int
    parameters: int
    encode: int  # the encoder without mask: evaluation, semantic maps and feature targets
    predict: int  # forward pass of training: all streams and the head
    training_step: int  # forward and backward, plus the passes without gradient


def operations(forward: Callable[[], object]) -> int:
    """Count the floating-point operations of a forward pass, which on the meta device computes nothing.

    Attention runs as matrix products, because not every version of torch counts every fused kernel.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def on_meta(network: Network) -> Network:
    """A copy of a network that has shapes but no values, so that its forward pass computes nothing."""
    parameters = {id(each): nn.Parameter(each.detach().to("meta")) for each in network.parameters()}
    return deepcopy(network, parameters | {id(each): each.to("meta") for each in network.buffers()})


def cost(model: Predictor, encoder_passes: int, teacher: int = 0) -> Cost:
    """Compute the cost of a model that predicts patches.

    Args:
        model: the model, on any device, neither wrapped nor compiled.
        encoder_passes: encoder passes without gradient per training step, for example 1 if the order needs a map.
        teacher: operations per image of a teacher's pass, if there is one.
    """
    shape = on_meta(model).eval()
    images_BCHW = torch.empty(1, 3, *model.image_size, device="meta")
    order_BL = torch.empty(1, model.grid[0] * model.grid[1], dtype=torch.long, device="meta")
    embed = operations(lambda: shape.patch_embed(images_BCHW))
    encode = operations(lambda: shape.encode(images_BCHW))
    predict = operations(lambda: shape.predict(images_BCHW, order_BL))
    encoder = ("patch_embed.", "cls_token", "blocks.", "norm.")
    return Cost(
        encoder_parameters=sum(p.numel() for name, p in model.named_parameters() if name.startswith(encoder)),
        parameters=sum(p.numel() for p in model.parameters()),
        encode=encode,
        predict=predict,
        training_step=3 * predict - embed + encoder_passes * encode + teacher,
    )


def encoder_cost(vit: VisionTransformer) -> Cost:
    """Compute the cost of an encoder: `predict` is a forward pass with its head, `training_step` is fine-tuning.

    Args:
        vit: the encoder; on the meta device this takes no memory and less than a second.
    """
    images_BCHW = vit.patch_embed.proj.weight.new_empty(1, 3, *vit.patch_embed.img_size)
    tokens_BND = images_BCHW.new_empty(1, vit.patch_embed.num_patches + vit.num_prefix_tokens, vit.embed_dim)
    encode = operations(lambda: vit.forward_features(images_BCHW))
    predict = encode + operations(lambda: vit.forward_head(tokens_BND))
    parameters = sum(p.numel() for name, p in vit.named_parameters() if name != "pos_embed")
    head = sum(p.numel() for p in vit.head.parameters())
    embed = operations(lambda: vit.patch_embed(images_BCHW))
    return Cost(parameters - head, parameters, encode, predict, 3 * predict - embed)
