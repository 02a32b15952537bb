"""Two-stream models from checkpoints of semaim, and from pretraining checkpoints of SemAIM and SAIM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from semaim.checkpoints import store
from semaim.checkpoints.formats import unwrapped
from semaim.config.source_run import run_folder_of, source_run, value_text
from semaim.core.finite import listed, non_finite
from semaim.core.formatting import plural, program, relative_to_cwd
from semaim.errors import NonFiniteError, UserError
from semaim.models.aim import AIM

log = logging.getLogger(__name__)
# Weights that identify a two-stream model and determine its sizes.
REQUIRED = {"patch_embed.proj.weight", "pos_embed", "query_blocks.0.attn.q.weight", "blocks.0.mlp.fc1.weight"}
HEAD_OUTPUT = {f"prediction_head.{layer}{kind}" for layer in ("", "fc2.") for kind in ("weight", "bias")}
OF_TARGET_AND_SIZE = HEAD_OUTPUT | {"pos_embed"}
HEADS = {"prediction_head.weight", "prediction_head.fc2.weight"}
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


def read_checkpoint(path: Path, option: str = "checkpoint") -> dict[str, Any]:
    """Content of a checkpoint file, of the newest intact checkpoint of a folder, or of the weights file in a folder.

    Args:
        path: the file or folder.
        option: configuration option that gave the path, for messages.

    Raises:
        UserError: if there is no checkpoint.
    """
    if (file := store.weights_file(path)) is not None:
        return store.load(file, option)
    folder = path / "checkpoints"
    state = store.newest(folder if folder.is_dir() else path)
    if state is None:
        run = source_run(path)
        task = "pretrain" if run is None or run.checkpoint != run.folder else run.chosen.get("task", "pretrain")
        if run is not None and task != "pretrain":
            raise UserError(f"{option}={path} is a run of task={task}, which has no weights of its own: it is of "
                            f"{option}={run.config.get('checkpoint')}")  # fmt: skip
        raise UserError(f"{option}={path} is a folder without checkpoints: not a run folder, or nothing saved yet")
    return state


def select_weights(state: dict[str, Any], given: str, ema: bool) -> dict[str, Tensor]:
    """The weights in a semaim checkpoint, or their moving average."""
    weights = state.get("ema" if ema else "model")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        missing = "moving average: its run had trainer.ema=false" if ema else "model"
        raise UserError(f"{given} holds no {missing}")
    return weights


def model_of(state: dict[str, Any], path: Path, num_heads: int | None, ema: bool, option: str = "checkpoint") -> AIM:
    """The two-stream model in a checkpoint; see `load_model` and `read_checkpoint`."""
    given = f"{option}={path}"
    if "architecture" in state:
        architecture = state["architecture"]
        if architecture is None or "classifier" in architecture:
            raise UserError(f"{given} is of an evaluation, it holds no pretrained two-stream model")
        if num_heads not in (None, architecture.get("num_heads")):
            raise UserError(f"{given} has {architecture.get('num_heads')} attention heads, not {num_heads}")
        weights = select_weights(state, given, ema)
    else:
        if ema:
            raise UserError(f"{given} is not from a run of semaim, so it holds no moving average")
        weights = _official_weights(state, given)
        architecture = infer_architecture(weights, num_heads, given)
    try:
        model = AIM(**architecture)
    except Exception as error:  # sizes of another kind raise any exception
        raise UserError(f"{given} describes a model that this version of semaim does not support: {error}") from error
    check_weights(model.state_dict(), weights, given)
    model.load_state_dict(weights)
    project = "of semaim" if "architecture" in state else "of SemAIM's or SAIM's code"
    log.info("%s: %s, %s loaded, none missing", given, project, plural(len(weights), "weight"))
    return model


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that must match the model exactly.

    Raises:
        UserError: if weights are missing, unexpected or of another shape; the model is then unchanged.
    """
    check_weights(model.state_dict(), weights, f"checkpoint={path}")
    model.load_state_dict(weights)


def start_from(model: AIM, state: dict[str, Any], path: Path) -> None:
    """Load the weights of a pretraining checkpoint, to start another training; logs what is taken and what is new.

    The target and the image size may be others: then the last layer of the head is new, as the model has it, and so are
    the positions, which are computed.

    Raises:
        UserError: if other weights are missing, unexpected or of another shape; the model is then unchanged.
    """
    weights, expected = model_of(state, path, None, False).state_dict(), model.state_dict()
    new = [
        name
        for name in weights.keys() & expected.keys()
        if name in OF_TARGET_AND_SIZE and weights[name].shape != expected[name].shape
    ]
    try:
        load_weights(model, weights | {name: expected[name] for name in new}, path)
    except UserError as error:
        if (folder := run_folder_of(path)) is None:
            raise
        command = program("again", relative_to_cwd(folder), f"checkpoint={value_text(str(path))}")
        raise UserError(f"{error}. Add your changes to this command, which has that model:\n  {command}") from None
    taken = f"the weights of step {state['step']}" if "architecture" in state else "the weights"
    log.info("checkpoint=%s: %s are taken, the optimizer, the schedule and the step are not", path, taken)
    for names, what in ((HEAD_OUTPUT, "target"), ({"pos_embed"}, "image size")):
        if found := sorted(names & {*new}):
            log.info("new, since the %s is another one: %s", what, ", ".join(found))


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], given: str) -> None:
    """Check the weights of a file.

    Args:
        expected: weights of the model, whose names and shapes must be the same.
        weights: weights of the file.
        given: option and value that named it.

    Raises:
        UserError: if names or shapes differ.
        NonFiniteError: if a value is not finite.
    """
    if (problem := mismatch(expected, weights)) is not None:
        raise UserError(f"{given} is of another architecture than the model ({problem})")
    check_finite(weights, given)


def check_finite(weights: Mapping[str, Tensor], given: str) -> None:
    """Raise NonFiniteError if weights are not finite; `given` is the option and value that named them."""
    if bad := non_finite(dict(weights)):
        raise NonFiniteError(
            f"{given} holds weights that are not finite ({listed(bad)}): choose others, such as an earlier checkpoint"
        )


def mismatch(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """Describe missing and unexpected weights and those of another shape or type; None if all match."""
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    types = [
        f"{name} is {weights[name].dtype}"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].is_floating_point() != expected[name].is_floating_point()
    ]
    parts = [
        f"{len(names)} {problem}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for problem, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", sorted(shapes)),
            ("of another type", types),
        )
        if names
    ]
    return "; ".join(parts) or None


def is_two_stream(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights belong to a two-stream model, even if incomplete."""
    return any(name.startswith("query_blocks.") for name in weights)


def _official_weights(state: dict[str, Any], given: str) -> dict[str, Tensor]:
    """The weights of an official checkpoint, without the fixed blur kernel."""
    weights = unwrapped(state)
    if not weights.keys() >= REQUIRED or not HEADS & weights.keys():
        raise UserError(
            f"{given} is not a pretraining checkpoint of semaim, SemAIM or SAIM: it holds "
            f"{sorted(weights)[:3] or sorted(state)[:3]}, ... (other projects' encoders are for evaluations: task=knn)"
        )
    if weights.pop("gaussian_blur.weight", None) is not None:  # semaim.targets.Pixels computes it
        log.info("left out: the target's fixed blur kernel")
    return weights


def default_num_heads(dim: int) -> int:
    """Usual number of attention heads of a vision transformer of a width."""
    usual = 16 if dim in WITH_16_HEADS else dim // 64 if dim % 64 == 0 else max(1, dim // 16)
    return next(heads for heads in range(usual, 0, -1) if dim % heads == 0)


def infer_architecture(weights: dict[str, Tensor], num_heads: int | None, given: str) -> dict[str, Any]:
    """Infer the arguments of `AIM` from the weights of an official checkpoint; the grid is assumed to be square."""
    dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side + 1 != weights["pos_embed"].shape[1]:
        raise UserError(f"{given} has positions for {weights['pos_embed'].shape[1] - 1} patches: not square")

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(prefix)})

    linear = "prediction_head.weight" in weights
    if num_heads is None:
        num_heads = default_num_heads(dim)
        log.info("%s: assuming %d attention heads for width %d", given, num_heads, dim)
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
