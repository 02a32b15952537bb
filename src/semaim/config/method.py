"""The name of a method: how the literature calls a composition of model and order, or what it is composed of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names of two-stream models by their order, and orders of masks and of segments that the papers draw at random.
OF_ORDER = {"AttentionCenter": "SemAIM", "Stochastic": "SAIM", "Raster": "ViT-iGPT"}
RANDOM = ("Stochastic", "RandomSquares", "RandomBlobs")


def method_name(config: Mapping[str, Any], choices: Mapping[str, str]) -> str | None:
    """The name of the method of a pretraining, such as "SemAIM", "RandSAC-11" or "MAE, attention_center".

    The target is not part of it: SemAIM predicts pixels or the features of CLIP.

    Args:
        config: a configuration as it is stored.
        choices: its choice in each group.

    Returns:
        None if it has no model, or no order.
    """
    model, order = config.get("model"), config.get("permutation")
    if not isinstance(model, Mapping) or not isinstance(order, Mapping):
        return None
    kind, of_order = (str(each.get("_target_")).rpartition(".")[2] for each in (model, order))
    segments = model.get("segments")
    if kind == "AIM" and segments is None and of_order in OF_ORDER:
        return OF_ORDER[of_order]
    if kind == "AIM" and segments is not None and of_order in RANDOM:
        return f"RandSAC-{segments}"
    if kind != "AIM" and of_order == "Stochastic":
        return kind
    parts = [kind, choices.get("permutation", of_order), f"{segments} segments" if segments is not None else ""]
    return ", ".join(filter(None, parts))
