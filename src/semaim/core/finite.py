"""The search for NaN and infinity in weights and other stored values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def non_finite(content: Any) -> list[str]:
    """Names of the tensors with a value that is not finite, such as "model.blocks.0.norm1.weight".

    The device is waited for once. Tensors on the meta device have no values and are left out.

    Args:
        content: nested dictionaries and lists.
    """
    tensors = {
        name: value if value.element_size() > 1 else value.float()  # torch cannot sum numbers of 8 bits
        for name, value in _named_tensors(content)
        if value.is_floating_point() and value.numel() and not value.is_meta
    }
    if not tensors:
        return []
    device = next(iter(tensors.values())).device
    sums = torch.stack([value.sum().float().to(device) for value in tensors.values()]).tolist()
    suspects = [name for name, total in zip(tensors, sums, strict=True) if not math.isfinite(total)]
    return [name for name in suspects if not tensors[name].isfinite().all()]  # a sum of finite values may overflow


def listed(names: list[str]) -> str:
    """Some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _named_tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _named_tensors(value, f"{prefix}.{key}" if prefix else str(key))
