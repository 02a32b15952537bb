"""Networks of teachers: vision transformers for images of any size, by timm's name or from weights."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semaim.checkpoints import timm_models
from semaim.checkpoints.foreign import converted
from semaim.checkpoints.formats import PATCHES, other_model_kind
from semaim.checkpoints.pretrained import mismatch, read_checkpoint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.errors import UserError

OPTION = "target.weights"
PAGE = "docs/targets-and-teachers.md"


def named_network(name: str, projection: bool, from_hub: bool = False) -> VisionTransformer:
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
        if from_hub:
            message = f"the weights of target.model={name} cannot be fetched ({error}). {download_advice(name)}"
        else:
            message = _unsuitable_message(name, error)
        raise UserError(message) from error
    if not _can_teach(network):
        raise UserError(_unsuitable_message(name, "teachers have a class token"))
    if not projection:
        network.reset_classifier(0)
    elif isinstance(network.head, nn.Identity):
        raise UserError(f"target.projection=true, but target.model={name} has no layer after its norm: set it to false")
    return network


def _can_teach(network: nn.Module) -> bool:
    return isinstance(network, VisionTransformer) and network.cls_token is not None


def _unsuitable_message(name: str, reason: object) -> str:
    return (
        f"target.model={name} is not a vision transformer of timm that can be a teacher ({reason}): choose one of "
        f"timm.list_models('vit_*', pretrained=True); names that begin with hf-hub: need a network"
    )


def download_advice(name: str) -> str:
    """Advice on where to download the weights of a model, and how to use them."""
    cfg = timm.models.get_pretrained_cfg(name)
    urls = [] if cfg is None else [cfg.hf_hub_id and f"https://huggingface.co/{cfg.hf_hub_id}", cfg.url]
    source = " or ".join(url for url in urls if url) or "their authors"
    return (
        f"Get them on a machine with a network from {source}, then give the file with {OPTION}=/path/to/file "
        f"({PAGE}); for trials, target.pretrained=false uses a teacher with random weights"
    )


def stored_encoder(weights: str, projection: bool) -> StoredEncoder:
    """The encoder in a file or folder; raises UserError if it cannot be read."""
    path = Path(weights).expanduser()
    if not path.exists():
        raise UserError(f"{OPTION}={path} does not exist. {PAGE} says where to get weights")
    return StoredEncoder(path, read_checkpoint(path, OPTION), False, None, None, OPTION, projection)


def network_of(stored: StoredEncoder, projection: bool) -> VisionTransformer:
    """The encoder in a file or folder, for images of any size.

    Raises:
        UserError: if it cannot be a teacher.
    """
    if projection and stored.content.num_classes == 0:
        raise UserError(f"target.projection=true, but {stored.given} has no layer after its norm: set it to false")
    with torch.random.fork_rng(devices=[]):  # later random draws do not depend on the teacher
        try:
            network = stored.content.network(head=projection, any_size=True)
        except TypeError:  # timm's model has a fixed image size, as BEiT
            network = None
    if network is None or not _can_teach(network):
        raise UserError(f"{stored.given} cannot be a teacher: it is not a vision transformer with a class token and "
                        f"absolute positions. Choose other weights, or export features of it")  # fmt: skip
    return network


def weights_of_named(network: VisionTransformer, name: str, stored: StoredEncoder) -> dict[str, Tensor]:
    """The weights of a named network in another project's file, in float32.

    Raises:
        UserError: if the weights do not match the network exactly.
    """
    if not stored.is_foreign:
        raise UserError(f"{stored.given} determines its model, but target.model={name} names another: choose "
                        f"target=teacher, or set target.model=null")  # fmt: skip
    weights = converted(stored.weights, network)
    if (problem := mismatch(network.state_dict(), weights)) is not None:
        kind = other_model_kind(weights) if PATCHES not in weights else ""
        raise UserError(
            f"{stored.given} does not hold the weights of target.model={name} ({f'it {kind}; ' if kind else ''}"
            f"{problem}). Choose the matching model, let the weights determine it (target.model=null), or get the "
            f"weights of this one. {download_advice(name)}"
        )
    return {name: value.float().contiguous() for name, value in weights.items()}
