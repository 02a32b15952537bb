"""Models from checkpoints: our run folders and files, and the pretraining checkpoints of SemAIM and SAIM."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from semaim import checkpoint
from semaim.errors import UserError
from semaim.models.aim import AIM

log = logging.getLogger(__name__)
# The weights that tell a two-stream model and its sizes.
NEEDED = {"patch_embed.proj.weight", "pos_embed", "query_blocks.0.attn.q.weight", "blocks.0.mlp.fc1.weight"}
HEADS = {"prediction_head.weight", "prediction_head.fc2.weight"}


def load_model(path: str | Path, device: str = "cpu", num_heads: int | None = None, ema: bool = False) -> AIM:
    """Load a pretrained two-stream model.

    Args:
        path: a run folder (its newest intact checkpoint), a checkpoint of ours, or an official SemAIM or SAIM `.pth`,
            whose sizes are inferred from its weights.
        device: where the model is put.
        num_heads: attention heads of an official checkpoint, which weights cannot tell; by default 16 for widths 1024
            and 1280, else width / 64, else (width not divisible by 64) width / 16.
        ema: take the moving average of the weights, which a run with trainer.ema=true keeps.

    Returns:
        the model in eval mode.

    Raises:
        UserError: if there is no such checkpoint, it is not one of these kinds, or its weights do not fit together.
    """
    path = Path(path)
    return model_of(read_checkpoint(path), path, num_heads, ema).to(device).eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, or the newest intact one of a folder: of a run, or of checkpoints.

    Raises:
        UserError: if there is none.
    """
    if not path.is_dir():
        return checkpoint.load(path)
    below = path / "checkpoints"
    state = checkpoint.newest(below if below.is_dir() else path)
    if state is None:
        raise UserError(f"checkpoint={path} is a folder without checkpoints: not a run folder, or nothing saved yet")
    return state


def chosen_weights(state: dict[str, Any], path: Path, ema: bool) -> dict[str, Tensor]:
    """The weights in a checkpoint of ours, or their moving average."""
    weights: dict[str, Tensor] | None = state.get("ema" if ema else "model")
    if weights is None:
        lacks = "moving average: its run had trainer.ema=false" if ema else "model"
        raise UserError(f"checkpoint={path} holds no {lacks}")
    return weights


def model_of(state: dict[str, Any], path: Path, num_heads: int | None, ema: bool) -> AIM:
    """The two-stream model in a checkpoint; see `load_model`."""
    if "architecture" in state:
        architecture = state["architecture"]
        if architecture is None or "classifier" in architecture:
            raise UserError(f"checkpoint={path} is of an evaluation, it holds no pretrained two-stream model")
        if num_heads not in (None, architecture.get("num_heads")):
            raise UserError(f"checkpoint={path} has {architecture.get('num_heads')} attention heads, not {num_heads}")
        weights = chosen_weights(state, path, ema)
    else:
        if ema:
            raise UserError(f"checkpoint={path} is not from a run of semaim, so it holds no moving average")
        weights = _official_weights(state, path)
        architecture = infer_architecture(weights, num_heads, path)
    try:
        model = AIM(**architecture)
    except TypeError as error:
        raise UserError(f"checkpoint={path} describes a model that this semaim does not know: {error}") from error
    load_weights(model, weights, path)
    return model


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that must match the model exactly.

    Raises:
        UserError: naming what is missing, unexpected or of another shape; the model is unchanged then.
    """
    wrong = mismatch(model.state_dict(), weights)
    if wrong is not None:
        raise UserError(f"checkpoint={path} is of another architecture than the model ({wrong})")
    model.load_state_dict(weights)


def mismatch(own: dict[str, Tensor], weights: dict[str, Tensor]) -> str | None:
    """What is missing, unexpected or of another shape in weights, by name; None if they are what a model has."""
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes)))
        if names
    ]
    return "; ".join(parts) or None


def _official_weights(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of an official checkpoint, without the prefix of a parallel wrapper and the fixed blur kernel."""
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    weights = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights.keys() >= NEEDED or not HEADS & weights.keys():
        raise UserError(
            f"checkpoint={path} is not a pretraining checkpoint of semaim, SemAIM or SAIM: it holds "
            f"{sorted(weights)[:3] or sorted(state)[:3]}, ..."
        )
    weights.pop("gaussian_blur.weight", None)  # the target's fixed kernel, computed here by semaim.targets.Pixels
    return weights


def infer_architecture(weights: dict[str, Tensor], num_heads: int | None, path: Path) -> dict[str, Any]:
    """Arguments of `AIM` that fit the weights of an official checkpoint; the grid is taken to be square."""
    dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side + 1 != weights["pos_embed"].shape[1]:
        raise UserError(f"checkpoint={path} has positions for {weights['pos_embed'].shape[1] - 1} patches: not square")

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(prefix)})

    linear = "prediction_head.weight" in weights
    if num_heads is None:
        num_heads = 16 if dim in (1024, 1280) else dim // 64 if dim % 64 == 0 else max(1, dim // 16)
        log.info("checkpoint %s: taking %d attention heads for width %d", path, num_heads, dim)
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
