"""Pretrained models from checkpoints of semaim, and from pretraining checkpoints of SemAIM, SAIM and MAE."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from semaim.checkpoints import store
from semaim.checkpoints.official import read_official
from semaim.config.source_run import run_folder_of, source_run, value_text
from semaim.core.finite import listed, non_finite
from semaim.core.formatting import plural, program, relative_to_cwd
from semaim.errors import NonFiniteError, UserError
from semaim.models.aim import AIM
from semaim.models.mae import MAE
from semaim.models.predictor import Predictor
from semaim.models.simmim import SimMIM

log = logging.getLogger(__name__)
# Weights that depend on the target or on the size of the images.
HEAD_OUTPUT = {
    f"{layer}.{kind}"
    for layer in ("prediction_head", "prediction_head.fc2", "decoder_pred")
    for kind in ("weight", "bias")
}
POSITIONS = {"pos_embed", "decoder_pos_embed"}
# By `model` in an architecture, where a two-stream model has none; also the beginnings of the choices of `model=`.
MODELS: dict[str, type[Predictor]] = {"aim": AIM, "mae": MAE, "simmim": SimMIM}
TWO_STREAM = "aim"


def load_model(
    path: str | Path,
    device: str = "cpu",
    num_heads: int | None = None,
    ema: bool = False,
    decoder_num_heads: int | None = None,
) -> Predictor:
    """Load a pretrained model, which predicts patches.

    Args:
        path: a run folder (its newest intact checkpoint), a semaim checkpoint, or a pretraining checkpoint of SemAIM,
            SAIM or MAE (with its decoder), whose sizes are inferred from its weights.
        device: device of the model.
        num_heads: attention heads of an official checkpoint, which its weights do not determine; default: 16 for the
            widths of ViT-L and larger, else width / 64, else (width not divisible by 64) width / 16.
        ema: use the moving average of the weights, which runs with trainer.ema=true store.
        decoder_num_heads: likewise of MAE's decoder; default: 16 for widths from 512.

    Returns:
        the model in eval mode.

    Raises:
        UserError: if the checkpoint does not exist, is of another kind, or its weights are inconsistent.
    """
    path = Path(path)
    return model_of(read_checkpoint(path), path, num_heads, ema, decoder_num_heads=decoder_num_heads).to(device).eval()


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


def model_of(
    state: dict[str, Any],
    path: Path,
    num_heads: int | None,
    ema: bool,
    option: str = "checkpoint",
    decoder_num_heads: int | None = None,
) -> Predictor:
    """The model in a checkpoint; see `load_model` and `read_checkpoint`."""
    given = f"{option}={path}"
    if "architecture" in state:
        project, architecture = "of semaim", state["architecture"]
        if architecture is None or "classifier" in architecture:
            raise UserError(f"{given} is of an evaluation, it holds no pretrained model that predicts patches")
        for name, heads in (("num_heads", num_heads), ("decoder_num_heads", decoder_num_heads)):
            if heads is not None and name not in architecture:
                raise UserError(f"{given} has a model without a decoder of its own width: leave out {name}={heads}")
            if heads not in (None, architecture.get(name)):
                where = " in its decoder" if name == "decoder_num_heads" else ""
                raise UserError(f"{given} has {architecture[name]} attention heads{where}, not {heads}")
        if (kind := architecture.get("model", TWO_STREAM)) not in MODELS:
            raise UserError(f"{given} is of a model of your own ({kind}), whose encoder alone can be read: for "
                            f"evaluations, such as task=knn")  # fmt: skip
        weights = select_weights(state, given, ema)
    else:
        if ema:
            raise UserError(f"{given} is not from a run of semaim, so it holds no moving average")
        project, architecture, weights = read_official(state, given, num_heads, decoder_num_heads)
        project = f"of {project}"
    try:
        arguments = dict(architecture)
        model = MODELS[arguments.pop("model", TWO_STREAM)](**arguments)
    except Exception as error:  # sizes of another kind raise any exception
        raise UserError(f"{given} describes a model that this version of semaim does not support: {error}") from error
    check_weights(model.state_dict(), weights, given)
    model.load_state_dict(weights)
    log.info("%s: %s, %s loaded, none missing", given, project, plural(len(weights), "weight"))
    return model


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that must match the model exactly.

    Raises:
        UserError: if weights are missing, unexpected or of another shape; the model is then unchanged.
    """
    check_weights(model.state_dict(), weights, f"checkpoint={path}")
    model.load_state_dict(weights)


def start_from(model: Predictor, state: dict[str, Any], path: Path) -> None:
    """Load the weights of a pretraining checkpoint, to start another training; logs what is taken and what is new.

    The target and the image size may be others: then the last layer of the head is new, as the model has it, and so are
    the positions, which are computed.

    Raises:
        UserError: if the model is of another kind, or other weights are missing, unexpected or of another shape; the
            model is then unchanged.
    """
    source = model_of(state, path, None, False)
    weights, expected = source.state_dict(), model.state_dict()
    new = [
        name
        for name in weights.keys() & expected.keys()
        if name in HEAD_OUTPUT | POSITIONS and weights[name].shape != expected[name].shape
    ]
    try:
        theirs, ours = (each.architecture.get("model", TWO_STREAM) for each in (source, model))
        if theirs != ours:
            raise UserError(f"checkpoint={path} holds another model (model={theirs}_...) than this command trains "
                            f"(model={ours}_...): choose model={theirs}_...")  # fmt: skip
        load_weights(model, weights | {name: expected[name] for name in new}, path)
    except UserError as error:
        if (folder := run_folder_of(path)) is None:
            raise
        command = program("again", relative_to_cwd(folder), f"checkpoint={value_text(str(path))}")
        raise UserError(f"{error}. Add your changes to this command, which has that model:\n  {command}") from None
    taken = f"the weights of step {state['step']}" if "architecture" in state else "the weights"
    log.info("checkpoint=%s: %s are taken, the optimizer, the schedule and the step are not", path, taken)
    for names, what in ((HEAD_OUTPUT, "target"), (POSITIONS, "image size")):
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
