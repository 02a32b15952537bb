"""Origin of an encoder: its pretraining, as evaluations record and compare it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semaim.config.method import method_name
from semaim.config.naming import other_overrides
from semaim.core.files import adapter


@dataclass(frozen=True)
class Origin:
    """Origin of an encoder.

    Attributes:
        tags: properties of its pretraining, as `pretrained.<property>`.
        metrics: length and cost of its pretraining, as `pretrained/<metric>`: epochs, images seen, device-hours, and
            floating-point operations. Those of a run that extends another one include that run's; those of a run that
            started from weights alone (`checkpoint=`) are its own. Metrics that are not known are left out.
        step: step of its pretraining.
        data: configuration of the pretraining data, if known.
    """

    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    data: dict[str, Any] | None = None


def origin_of(state: dict[str, Any], ema: bool) -> Origin:
    """Origin of the encoder in a semaim checkpoint; for a fine-tuned model, that of its pretrained encoder."""
    if (pretrained := state["task"].get("origin")) is not None:
        return adapter(Origin).validate_python(pretrained)
    choices, position = state["choices"], state["data_position"]
    options = other_overrides((*choices, "seed", "data.root"), state["overrides"])
    values = {key: choices[key] for key in ("model", "permutation", "target", "data") if key in choices}
    values |= {
        "method": method_name(state["config"], choices) or "",
        "run": Path(state["config"]["run_dir"]).name,
        "seed": str(state["config"]["seed"]),
        "device": state["device"],
        # Options of the task and the evaluators affect measurements only.
        "options": " ".join(option for option in options if not option.startswith(("task.", "evaluators="))),
        "weights": "moving average" if ema else "",
    }
    metrics = {
        "epochs": float(position["epochs"]),
        "images_seen": float(position["images_seen"]),
        "device_hours": state["device_seconds"] / 3600,
    }
    if (flops := state.get("flops")) is not None:  # earlier versions did not count them
        metrics["flops"] = float(flops)
    return Origin(
        {f"pretrained.{key}": value for key, value in values.items() if value},
        {f"pretrained/{key}": value for key, value in metrics.items()},
        state["step"],
        state["config"]["data"],
    )
