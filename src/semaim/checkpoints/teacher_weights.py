"""Weights of teachers: timm's vision transformers, from the hub or from a file of DINO, CLIP, open_clip or timm.

The weights must match the teacher exactly; otherwise an error says where to get them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from semaim.checkpoints import store, timm_models
from semaim.checkpoints.formats import other_model_kind
from semaim.checkpoints.two_stream import mismatch
from semaim.errors import UserError

WRAPPERS = ("teacher", "state_dict", "model")  # keys of the weights in training checkpoints of DINO, open_clip and timm
# Weights that timm silently resamples to other patch and image sizes, and the endings of their names in files.
PATCHES = "patch_embed.proj.weight"
RESAMPLED = {
    PATCHES: (PATCHES, "visual.conv1.weight"),
    "pos_embed": ("pos_embed", "visual.positional_embedding"),
}
PAGE = "docs/targets-and-teachers.md"


def build(name: str, projection: bool, from_hub: bool = False) -> VisionTransformer:
    """Build a timm vision transformer for images of any size.

    Args:
        name: timm's model name.
        projection: keep its last linear layer (CLIP's projection); else remove it.
        from_hub: load the weights from the hub; else random weights (no weights on the meta device).

    Raises:
        UserError: if timm has no such model, the hub cannot be reached, or the model has another architecture.
    """
    try:
        network = timm_models.create(name, from_hub, dynamic_img_size=True)
    except timm_models.ModelUnavailable as error:
        raise UserError(_unavailable_message(name, error) if from_hub else _unsuitable_message(name, error)) from error
    if not isinstance(network, VisionTransformer) or network.cls_token is None:
        raise UserError(_unsuitable_message(name, "teachers have a class token"))
    if not projection:
        network.reset_classifier(0)
    elif isinstance(network.head, nn.Identity):
        raise UserError(f"target.projection=true, but target.model={name} has no layer after its norm: set it to false")
    return network


def _unsuitable_message(name: str, reason: object) -> str:
    return (
        f"target.model={name} is not a vision transformer of timm that can be a teacher ({reason}): choose one of "
        f"timm.list_models('vit_*', pretrained=True); names that begin with hf-hub: need a network"
    )


def _unavailable_message(name: str, reason: object) -> str:
    return f"the weights of target.model={name} cannot be fetched ({reason}). {download_advice(name)}"


def download_advice(name: str) -> str:
    """Advice on where to download the weights of a model, and how to use them."""
    cfg = timm.models.get_pretrained_cfg(name)
    urls = [] if cfg is None else [cfg.hf_hub_id and f"https://huggingface.co/{cfg.hf_hub_id}", cfg.url]
    source = " or ".join(url for url in urls if url) or "their authors"
    return (
        f"Get them on a machine with a network from {source}, then give the file with target.weights=/path/to/file "
        f"({PAGE}); for trials, target.pretrained=false uses a teacher with random weights"
    )


def fill(network: VisionTransformer, name: str, path: Path) -> None:
    """Load the weights of a network on the meta device from a file, in float32.

    Raises:
        UserError: if the file is missing or damaged, would run code, or does not match the network exactly.
    """
    weights = _to_timm_names(read(path), network)
    problem = mismatch(network.state_dict(), weights)
    if problem is not None:
        kind = other_model_kind(weights) if PATCHES not in weights else ""
        reason = f"it {kind}; {problem}" if kind else problem
        raise UserError(
            f"target.weights={path} does not hold the weights of target.model={name} ({reason}). "
            f"Choose the matching model, or get the weights of this one. {download_advice(name)}"
        )
    network.load_state_dict(weights, assign=True)


def read(path: Path) -> dict[str, Any]:
    """Read a weights file (.pth, .pt, .bin, .safetensors) without executing code in it.

    Raises:
        UserError: if the file does not exist or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"target.weights={path} does not exist. {PAGE} says where to get weights")
    return store.load(path, "target.weights")


def _to_timm_names(state: dict[str, Any], network: VisionTransformer) -> dict[str, Tensor]:
    """The weights of the image tower by timm's names, without wrapper prefixes and a text tower."""
    unwrapped = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    stored = {name.removeprefix("module."): value for name, value in unwrapped.items() if isinstance(value, Tensor)}
    if any(name.startswith("backbone.") for name in stored):  # DINO stores its projection head separately
        stored = {name.removeprefix("backbone."): v for name, v in stored.items() if name.startswith("backbone.")}
    try:
        weights: dict[str, Tensor] = checkpoint_filter_fn(stored, network)
    except Exception:  # it may raise any exception for weights of other models
        weights = stored
    for name, endings in RESAMPLED.items():
        original = next((value for key, value in stored.items() if key.endswith(endings)), None)
        if original is not None and name in weights and original.numel() != weights[name].numel():
            weights[name] = original
    if isinstance(network.head, nn.Identity):
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    return {name: value.float().contiguous() for name, value in weights.items()}
