"""Where an encoder is from: what evaluations say of it, and compare it by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semaim.config.naming import other_overrides


@dataclass(frozen=True)
class Origin:
    """Where an encoder is from.

    Attributes:
        tags: names of what it was pretrained with, as `pretrained.<what>`.
        metrics: how long, as `pretrained/<what>`.
        step: of its pretraining.
        data: configuration of the data it was pretrained on, if known.
    """

    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    data: dict[str, Any] | None = None


def origin_of(state: dict[str, Any], ema: bool) -> Origin:
    """Where the encoder in one of our checkpoints is from; that of a fine-tuned model is where it was pretrained."""
    if (before := state["task"].get("origin")) is not None:
        return Origin(**before)
    choices, position = state["choices"], state["data_position"]
    options = other_overrides((*choices, "seed", "data.root"), state["overrides"])
    made = {key: choices[key] for key in ("model", "permutation", "target", "data") if key in choices}
    made |= {
        "run": Path(state["config"]["run_dir"]).name,
        "seed": str(state["config"]["seed"]),
        "device": state["device"],
        "options": " ".join(option for option in options if not option.startswith("task.")),  # which only measures
        "weights": "moving average" if ema else "",
    }
    metrics = {
        "epochs": position["epochs"],
        "images_seen": float(position["images_seen"]),
        "device_hours": state["device_seconds"] / 3600,
    }
    return Origin(
        {f"pretrained.{key}": value for key, value in made.items() if value},
        {f"pretrained/{key}": value for key, value in metrics.items()},
        state["step"],
        state["config"]["data"],
    )
