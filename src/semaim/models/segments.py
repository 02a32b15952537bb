"""Segments: consecutive parts of an order, whose patches are predicted in parallel. Source: RandSAC (arXiv 2203.12054).

Shapes: L patches in prediction order, N content tokens (cls first).
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sizes(patches: int, segments: int) -> list[int]:
    """Patches of each segment: equal, or one more in the first segments."""
    shorter, longer = divmod(patches, segments)
    return [shorter + (segment < longer) for segment in range(segments)]


def content_patches(patches: int, segments: int) -> int:
    """Patches that the content stream needs: all but the last segment, which nothing is predicted from.

    One at least, so that the patch embedding has a gradient (of zeros) even if there is a single segment.
    """
    return max(1, patches - segment_sizes(patches, segments)[-1])


def segment_masks(patches: int, segments: int) -> tuple[Tensor, Tensor]:
    """What tokens see: masks of the content stream (N, N) and of the query stream (L, N), bool.

    The class token has rank 0, a patch of segment s (from 0) has rank 1 + s. A content token sees ranks up to its own,
    a query of segment s sees ranks up to s. With a segment per patch both masks are causal.
    """
    sizes = torch.tensor(segment_sizes(patches, segments))
    rank_L = torch.arange(1, 1 + segments).repeat_interleave(sizes, output_size=patches)
    rank_N = torch.cat([torch.zeros(1, dtype=torch.long), rank_L[: content_patches(patches, segments)]])
    return rank_N[None] <= rank_N[:, None], rank_N[None] < rank_L[:, None]
