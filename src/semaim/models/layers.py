"""Attention and the two kinds of transformer block.

Shapes: B images, L queries (patches in prediction order), N tokens, D width, H heads, K = D / H.

References: pre-norm ViT block (Dosovitskiy et al. 2021, equations 2-3); two-stream attention (Yang et al. 2019, XLNet,
section 2.3) in the image form of SAIM (arXiv 2212.01610) and SemAIM (arXiv 2312.10457, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
Mask = bool | Tensor  # what a query sees: everything (False), what is not after it (True), or bool (L, N)


def attend(q_BHLK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, mask: Mask) -> Tensor:
    """Scaled dot-product attention; masks are applied here only.

    Tokens are sorted by prediction order, so the plain causal mask restricts attention to earlier patches, and no mask
    tensor is needed. Those of segments are the same for all images of a batch.

    Returns:
        (B, L, D), heads merged.
    """
    if isinstance(mask, Tensor):
        out_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHNK, v_BHNK, attn_mask=mask)
    else:
        out_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHNK, v_BHNK, is_causal=mask)
    return out_BHLK.transpose(1, 2).flatten(2)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop the branch of an image with a probability, scale the others.

    The numbers are those of timm's. A compiled graph reads the rate from a tensor, so that blocks with different rates
    share one graph: with a number, each block has its own, and torch compiles eight at most.

    Args:
        rate: probability of dropping.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops = rate > 0
        self.register_buffer("keep", torch.tensor(1 - rate), persistent=False)

    def forward(self, x_BND: Tensor, stochastic: bool) -> Tensor:
        """Drop branches if `stochastic`."""
        if not self.drops or not stochastic:
            return x_BND
        shape = (len(x_BND), 1, 1)
        if torch.compiler.is_compiling():
            kept_B11 = (torch.rand(shape, device=x_BND.device) < self.keep) / self.keep
            return x_BND * kept_B11.to(x_BND.dtype)
        return x_BND * x_BND.new_empty(shape).bernoulli_(1 - self.rate).div_(1 - self.rate)


class TimmDropPath(DropPath):
    """The same where timm's blocks have theirs."""

    def forward(self, x_BND: Tensor) -> Tensor:  # type: ignore[override]
        """Drop branches in training."""
        return super().forward(x_BND, self.training)


def first_row_of_attention(q_BHNK: Tensor, k_BHNK: Tensor) -> Tensor:
    """Attention of the first token to all tokens, averaged over heads: (B, N), float32. Other rows are not computed."""
    scores_BH1N = q_BHNK[:, :, :1].float() * q_BHNK.shape[-1] ** -0.5 @ k_BHNK.float().transpose(-1, -2)
    return scores_BH1N.softmax(-1)[:, :, 0].mean(1)


class SelfAttention(nn.Module):
    """Self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, K)."""
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x_BND: Tensor, mask: Mask) -> Tensor:
        return self.proj(attend(*self.heads(x_BND), mask))


class CrossAttention(nn.Module):
    """Cross-attention from queries to context tokens, with separate projections."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query_BLD: Tensor, context_BND: Tensor, mask: Mask) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in ((self.q, query_BLD), (self.k, context_BND), (self.v, context_BND))
        )
        return self.proj(attend(q, k, v, mask))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, x_BND: Tensor, mask: Mask, stochastic: bool) -> Tensor:
        """Apply the block; `stochastic` enables drop path (never in the semantic pass)."""
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND), mask), stochastic)
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)), stochastic)

    def forward_with_attention(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the block without mask, and return its attention from the first token, averaged over heads.

        Queries, keys and values are computed once for both.

        Returns:
            tokens (B, N, D) and attention (B, N - 1).
        """
        q, k, v = self.attn.heads(self.norm1(x_BND))
        attention_BN = first_row_of_attention(q, k)
        x_BND = x_BND + self.attn.proj(attend(q, k, v, False))
        return x_BND + self.mlp(self.norm2(x_BND)), attention_BN[:, 1:]


class QueryBlock(nn.Module):
    """Block of the query stream: cross-attention to the content stream. Queries and context share norm1."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, query_BLD: Tensor, context_BND: Tensor, mask: Mask, stochastic: bool) -> Tensor:
        read_BLD = self.attn(self.norm1(query_BLD), self.norm1(context_BND), mask)
        query_BLD = query_BLD + self.drop_path(read_BLD, stochastic)
        return query_BLD + self.drop_path(self.mlp(self.norm2(query_BLD)), stochastic)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform weights (a convolution as the equivalent linear layer on a patch) and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def gather_rows(x_BLD: Tensor, index_BK: Tensor) -> Tensor:
    """Rows of each image's matrix: out[b, k] = x[b, index[b, k]]."""
    return torch.gather(x_BLD, 1, index_BK[..., None].expand(-1, -1, x_BLD.shape[-1]))
