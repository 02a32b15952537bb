"""Small states to save in checkpoints, recognised by their step."""

from __future__ import annotations

import torch


def state_of(step, size=1000):
    """A state that contains its step."""
    return {"weights": torch.full((size,), float(step)), "name": f"step {step}"}


def is_of(state, step):
    return state["step"] == step and state["name"] == f"step {step}" and bool((state["weights"] == step).all())


def names(folder):
    return sorted(path.name for path in folder.iterdir())
