"""Weights of teachers: timm's vision transformers from the hub, or from a file as DINO, CLIP, open_clip or timm save.

A teacher has all its weights from one place and nothing else, or there is an error that says where to get them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from semaim.checkpoints import store, timm_models
from semaim.checkpoints.formats import what_else
from semaim.checkpoints.two_stream import mismatch
from semaim.errors import UserError

WRAPPERS = ("teacher", "state_dict", "model")  # what DINO, open_clip and timm store weights under when they train
# What timm fits in silence to patches and images of another size, and how its name ends in a file.
PATCHES = "patch_embed.proj.weight"
RESAMPLED = {
    PATCHES: (PATCHES, "visual.conv1.weight"),
    "pos_embed": ("pos_embed", "visual.positional_embedding"),
}
PAGE = "docs/targets-and-teachers.md"


def build(name: str, projection: bool, from_hub: bool = False) -> VisionTransformer:
    """One of timm's vision transformers, for images of any size.

    Args:
        name: timm's name of it.
        projection: keep its last linear layer, which CLIP projects by; else leave it out.
        from_hub: with the weights that the hub has for it, else with random ones (on the meta device: with none).

    Raises:
        UserError: if timm has no such model, the hub cannot be reached, or the model is of another kind.
    """
    try:
        network = timm_models.create(name, from_hub, dynamic_img_size=True)
    except timm_models.Absent as said:
        raise UserError(_not_on_hub(name, said) if from_hub else _no_such_model(name, said)) from said
    if not isinstance(network, VisionTransformer) or network.cls_token is None:
        raise UserError(_no_such_model(name, "teachers have a class token"))
    if not projection:
        network.reset_classifier(0)
    elif isinstance(network.head, nn.Identity):
        raise UserError(f"target.projection=true, but target.model={name} has no layer after its norm: set it to false")
    return network


def _no_such_model(name: str, said: object) -> str:
    return (
        f"target.model={name} is not a vision transformer of timm's that can teach ({said}): choose one of "
        f"timm.list_models('vit_*', pretrained=True); names that begin with hf-hub: need a network"
    )


def _not_on_hub(name: str, said: object) -> str:
    return f"the weights of target.model={name} cannot be fetched ({said}). {how_to_get(name)}"


def how_to_get(name: str) -> str:
    """What a person does who has no weights of a model: where they are, and how to give them."""
    known = timm.models.get_pretrained_cfg(name)
    places = [] if known is None else [known.hf_hub_id and f"https://huggingface.co/{known.hf_hub_id}", known.url]
    where = " or ".join(place for place in places if place) or "where its authors keep them"
    return (
        f"Get them on a machine with a network from {where}, then give the file with target.weights=/path/to/file "
        f"({PAGE}); target.pretrained=false tries things out with a teacher that has learned nothing"
    )


def fill(network: VisionTransformer, name: str, path: Path) -> None:
    """Give a network without values (on the meta device) those of a file, in float32.

    Raises:
        UserError: if the file is not there or damaged, would run code, or holds anything but exactly these weights.
    """
    weights = _in_timms_names(read(path), network)
    wrong = mismatch(network.state_dict(), weights)
    if wrong is not None:
        kind = what_else(weights) if PATCHES not in weights else ""
        said = f"it {kind}; {wrong}" if kind else wrong
        raise UserError(
            f"target.weights={path} does not hold the weights of target.model={name} ({said}). "
            f"Choose the model that they are of, or get this one's. {how_to_get(name)}"
        )
    network.load_state_dict(weights, assign=True)


def read(path: Path) -> dict[str, Any]:
    """What a file of weights holds (.pth, .pt, .bin, .safetensors), read without executing anything in it.

    Raises:
        UserError: if that cannot be.
    """
    if not path.is_file():
        raise UserError(f"target.weights={path} does not exist. {PAGE} says where weights are")
    return store.load(path, "target.weights")


def _in_timms_names(state: dict[str, Any], network: VisionTransformer) -> dict[str, Tensor]:
    """The weights of the image tower, under timm's names and without what training and a text tower add to them."""
    inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    given = {name.removeprefix("module."): value for name, value in inner.items() if isinstance(value, Tensor)}
    if any(name.startswith("backbone.") for name in given):  # DINO keeps its projection head beside it
        given = {name.removeprefix("backbone."): v for name, v in given.items() if name.startswith("backbone.")}
    try:
        weights: dict[str, Tensor] = checkpoint_filter_fn(given, network)
    except Exception:  # what tensors of other kinds of model make of it is not known
        weights = given
    for name, endings in RESAMPLED.items():
        stored = next((value for key, value in given.items() if key.endswith(endings)), None)
        if stored is not None and name in weights and stored.numel() != weights[name].numel():
            weights[name] = stored
    if isinstance(network.head, nn.Identity):
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    return {name: value.float().contiguous() for name, value in weights.items()}
