"""Image sizes: height and width."""

from __future__ import annotations

from semaim.errors import UserError


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one number or a pair."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise UserError(f"data.image_size={list(size)} must be one number or two, height and width")
    return int(size[0]), int(size[1])
