"""Two-stream models from checkpoints of semaim, and from pretraining checkpoints of SemAIM and SAIM."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from semaim.checkpoints import store
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.models.aim import AIM

log = logging.getLogger(__name__)
# Weights that identify a two-stream model and determine its sizes.
REQUIRED = {"patch_embed.proj.weight", "pos_embed", "query_blocks.0.attn.q.weight", "blocks.0.mlp.fc1.weight"}
HEADS = {"prediction_head.weight", "prediction_head.fc2.weight"}
INNER = ("state_dict", "model", "teacher")  # keys of the weights in files; of DINO the teacher is evaluated
OUTER = re.compile(r"^((module|_orig_mod|backbone|vit)\.)+")  # prefixes of wrappers: parallel, compiled, with a head
WITH_16_HEADS = (1024, 1152, 1280, 1408, 1664)  # widths of ViT-L, SoViT, ViT-H, ViT-g and ViT-bigG


def load_model(path: str | Path, device: str = "cpu", num_heads: int | None = None, ema: bool = False) -> AIM:
    """Load a pretrained two-stream model.

    Args:
        path: a run folder (its newest intact checkpoint), a semaim checkpoint, or an official SemAIM or SAIM `.pth`,
            whose sizes are inferred from its weights.
        device: device of the model.
        num_heads: attention heads of an official checkpoint, which its weights do not determine; default: 16 for the
            widths of ViT-L and larger, else width / 64, else (width not divisible by 64) width / 16.
        ema: use the moving average of the weights, which runs with trainer.ema=true store.

    Returns:
        the model in eval mode.

    Raises:
        UserError: if the checkpoint does not exist, is of another kind, or its weights are inconsistent.
    """
    path = Path(path)
    return model_of(read_checkpoint(path), path, num_heads, ema).to(device).eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint file, of the newest intact checkpoint of a folder, or of the weights file in a folder.

    Raises:
        UserError: if there is no checkpoint.
    """
    if (file := store.weights_file(path)) is not None:
        return store.load(file)
    folder = path / "checkpoints"
    state = store.newest(folder if folder.is_dir() else path)
    if state is None:
        raise UserError(f"checkpoint={path} is a folder without checkpoints: not a run folder, or nothing saved yet")
    return state


def select_weights(state: dict[str, Any], path: Path, ema: bool) -> dict[str, Tensor]:
    """The weights in a semaim checkpoint, or their moving average."""
    weights: dict[str, Tensor] | None = state.get("ema" if ema else "model")
    if weights is None:
        missing = "moving average: its run had trainer.ema=false" if ema else "model"
        raise UserError(f"checkpoint={path} holds no {missing}")
    return weights


def model_of(state: dict[str, Any], path: Path, num_heads: int | None, ema: bool) -> AIM:
    """The two-stream model in a checkpoint; see `load_model`."""
    if "architecture" in state:
        architecture = state["architecture"]
        if architecture is None or "classifier" in architecture:
            raise UserError(f"checkpoint={path} is of an evaluation, it holds no pretrained two-stream model")
        if num_heads not in (None, architecture.get("num_heads")):
            raise UserError(f"checkpoint={path} has {architecture.get('num_heads')} attention heads, not {num_heads}")
        weights = select_weights(state, path, ema)
    else:
        if ema:
            raise UserError(f"checkpoint={path} is not from a run of semaim, so it holds no moving average")
        weights = _official_weights(state, path)
        architecture = infer_architecture(weights, num_heads, path)
    try:
        model = AIM(**architecture)
    except TypeError as error:
        raise UserError(
            f"checkpoint={path} describes a model that this version of semaim does not support: {error}"
        ) from error
    load_weights(model, weights, path)
    project = "of semaim" if "architecture" in state else "of SemAIM's or SAIM's code"
    log.info("checkpoint %s: %s, %s loaded, none missing", path, project, plural(len(weights), "weight"))
    return model


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that must match the model exactly.

    Raises:
        UserError: if weights are missing, unexpected or of another shape; the model is then unchanged.
    """
    check_weights(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError if names or shapes of weights differ from those expected by a model."""
    if (problem := mismatch(expected, weights)) is not None:
        raise UserError(f"checkpoint={path} is of another architecture than the model ({problem})")


def mismatch(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """Describe missing and unexpected weights and those of another shape; None if all match."""
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    parts = [
        f"{len(names)} {problem}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes)))
        if names
    ]
    return "; ".join(parts) or None


def unwrapped_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint of any project, without prefixes of wrapper modules."""
    for key in INNER:
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    return {OUTER.sub("", name, 1): value for name, value in state.items() if isinstance(value, Tensor)}


def is_two_stream(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights belong to a two-stream model, even if incomplete."""
    return any(name.startswith("query_blocks.") for name in weights)


def _official_weights(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of an official checkpoint, without the fixed blur kernel."""
    weights = unwrapped_weights(state)
    if not weights.keys() >= REQUIRED or not HEADS & weights.keys():
        raise UserError(
            f"checkpoint={path} is not a pretraining checkpoint of semaim, SemAIM or SAIM: it holds "
            f"{sorted(weights)[:3] or sorted(state)[:3]}, ... (other projects' encoders are for evaluations: task=knn)"
        )
    if weights.pop("gaussian_blur.weight", None) is not None:  # semaim.targets.Pixels computes it
        log.info("left out: the target's fixed blur kernel")
    return weights


def default_num_heads(dim: int) -> int:
    """Usual number of attention heads of a vision transformer of a width."""
    return 16 if dim in WITH_16_HEADS else dim // 64 if dim % 64 == 0 else max(1, dim // 16)


def infer_architecture(weights: dict[str, Tensor], num_heads: int | None, path: Path) -> dict[str, Any]:
    """Infer the arguments of `AIM` from the weights of an official checkpoint; the grid is assumed to be square."""
    dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side + 1 != weights["pos_embed"].shape[1]:
        raise UserError(f"checkpoint={path} has positions for {weights['pos_embed'].shape[1] - 1} patches: not square")

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(prefix)})

    linear = "prediction_head.weight" in weights
    if num_heads is None:
        num_heads = default_num_heads(dim)
        log.info("checkpoint %s: assuming %d attention heads for width %d", path, num_heads, dim)
    return {
        "out_channels": weights[f"prediction_head.{'' if linear else 'fc2.'}weight"].shape[0],
        "image_size": (side * patch_size, side * patch_size),
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": count("blocks."),
        "num_heads": num_heads,
        "query_depth": count("query_blocks."),
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "head": "linear" if linear else "mlp",
    }
