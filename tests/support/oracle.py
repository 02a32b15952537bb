"""Reference prediction of the model in plain masked form, written directly from the definition of the method.

All 1 + L tokens stay in raster order. Two boolean masks, computed from the ranks, define the visible tokens. The module
shares no forward code with `semaim.models`: it reads only the weights of an `AIM`, so it is an independent check of the
sorted-causal form. Benchmarks compare the sorted form with it.

Shapes: B images, L patches, N = 1 + L tokens (cls first), D width, H heads, K = D / H, P target channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

from semaim.models.aim import AIM

Weights = Mapping[str, Tensor]
Attention = Literal["explicit", "sdpa"]


def masks_from_order(order_BL: Tensor, segments: int | None = None) -> tuple[Tensor, Tensor]:
    """Content and query masks, each (B, 1, N, N), True where the row's token sees the column's token.

    Args:
        order_BL: the order.
        segments: parts of the order whose patches are predicted at once; None for one per patch.
    """
    batch, patches = order_BL.shape
    steps_L = torch.arange(patches)
    parts = steps_L.tensor_split(segments or patches)  # the first are longer by one, if they are not equal
    steps_L = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)]).to(order_BL.device)
    steps_BL = steps_L.expand(batch, -1)
    rank_BL = torch.empty_like(order_BL).scatter_(1, order_BL, steps_BL)
    masks = []
    for sees_BLL in (
        rank_BL[:, None, :] <= rank_BL[:, :, None],  # content: earlier patches and the patch itself
        rank_BL[:, None, :] < rank_BL[:, :, None],  # query: earlier patches only
    ):
        mask_BNN = torch.zeros(batch, 1 + patches, 1 + patches, dtype=torch.bool, device=order_BL.device)
        mask_BNN[:, :, 0] = True  # every token sees cls; cls sees only itself
        mask_BNN[:, 1:, 1:] = sees_BLL
        masks.append(mask_BNN[:, None])
    return masks[0], masks[1]


def masked_predict(
    model: AIM,
    images_BCHW: Tensor,
    order_BL: Tensor,
    attention: Attention = "explicit",
    segments: int | None = None,
) -> Tensor:
    """Predictions (B, L, P), raster-indexed, from the weights of `model`, without drop path.

    Args:
        model: provides weights and sizes; its forward is not used.
        images_BCHW: normalised images.
        order_BL: long, each row a permutation of 0..L-1.
        attention: "explicit" computes softmax(q k^T / sqrt(K) + mask) v; "sdpa" passes the same mask to
            `scaled_dot_product_attention`.
        segments: parts of the order whose patches are predicted at once; None for one per patch.
    """
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    content_mask, query_mask = masks_from_order(order_BL, segments)
    heads = int(model.blocks[0].attn.num_heads)  # type: ignore[arg-type,union-attr]
    positions_1ND = weights["pos_embed"]

    patches_BDhw = conv2d(
        images_BCHW, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=model.patch_size
    )
    cls_B1D = weights["cls_token"].expand(len(images_BCHW), -1, -1)
    content_BND = torch.cat([cls_B1D, patches_BDhw.flatten(2).transpose(1, 2)], dim=1) + positions_1ND
    query_BND = positions_1ND.expand(len(images_BCHW), -1, -1)

    every, states = len(model.blocks) // len(model.query_blocks), []
    for j in range(len(model.blocks)):
        name = f"blocks.{j}"
        q, k, v = _linear(weights, f"{name}.attn.qkv", _norm(weights, f"{name}.norm1", content_BND)).chunk(3, dim=-1)
        content_BND = content_BND + _attend(weights, f"{name}.attn.proj", q, k, v, content_mask, heads, attention)
        content_BND = content_BND + _mlp(weights, f"{name}.mlp", _norm(weights, f"{name}.norm2", content_BND))
        states.append(content_BND)
    for j in range(len(model.query_blocks)):
        read_BND = states[(j + 1) * every - 1]
        if f"skip_weights.{j}" in weights:
            read_BND = torch.einsum("j,jbnd->bnd", weights[f"skip_weights.{j}"], torch.stack(states))
        name = f"query_blocks.{j}"
        context_BND = _norm(weights, f"{name}.norm1", read_BND)
        q = _linear(weights, f"{name}.attn.q", _norm(weights, f"{name}.norm1", query_BND))
        k, v = _linear(weights, f"{name}.attn.k", context_BND), _linear(weights, f"{name}.attn.v", context_BND)
        query_BND = query_BND + _attend(weights, f"{name}.attn.proj", q, k, v, query_mask, heads, attention)
        query_BND = query_BND + _mlp(weights, f"{name}.mlp", _norm(weights, f"{name}.norm2", query_BND))

    query_BND = _norm(weights, "norm", query_BND)
    head = _mlp if "prediction_head.fc1.weight" in weights else _linear
    return head(weights, "prediction_head", query_BND)[:, 1:]  # the query in the cls slot predicts nothing


def _linear(weights: Weights, name: str, x_BND: Tensor) -> Tensor:
    return linear(x_BND, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x_BND: Tensor) -> Tensor:
    return layer_norm(x_BND, x_BND.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def _mlp(weights: Weights, name: str, x_BND: Tensor) -> Tensor:
    return _linear(weights, f"{name}.fc2", gelu(_linear(weights, f"{name}.fc1", x_BND)))


def _attend(
    weights: Weights,
    projection: str,
    q_BND: Tensor,
    k_BND: Tensor,
    v_BND: Tensor,
    mask_B1NN: Tensor,
    heads: int,
    attention: Attention,
) -> Tensor:
    """Attention of all tokens under the mask, heads merged and projected: (B, N, D)."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q_BND, k_BND, v_BND))
    if attention == "explicit":
        scores_BHNN = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        out_BHNK = scores_BHNN.masked_fill(~mask_B1NN, float("-inf")).softmax(-1) @ v
    else:
        out_BHNK = scaled_dot_product_attention(q, k, v, attn_mask=mask_B1NN)
    return _linear(weights, projection, out_BHNK.transpose(1, 2).flatten(2))
