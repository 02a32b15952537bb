"""Models to draw, with the order, the semantic map and the target of their training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate

from semaim.checkpoints.encoder_source import MLFLOW, Tracking
from semaim.checkpoints.pretrained import model_of, read_checkpoint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.checkpoints.stored_parts import stored_part
from semaim.config.compose import composition
from semaim.data.pixels import Transform
from semaim.data.transforms import IMAGENET_MEAN, IMAGENET_STD, evaluation
from semaim.errors import UserError
from semaim.models.mae import MAE
from semaim.models.predictor import Predictor
from semaim.permutations import Permutation
from semaim.semantics import SemanticMap
from semaim.targets import Pixels, Target
from semaim.visualization.views import Colours

log = logging.getLogger(__name__)
# The orders of SemAIM and of MAE, taken for checkpoints that do not name theirs.
UNKNOWN, MAES = "attention_center", "stochastic"


@dataclass
class ShownModel:
    """A model to draw.

    Attributes:
        name: as a heading.
        model: in eval mode.
        average: its moving average, if it is stored.
        transform: transform of its images.
        colours: colour normalisation of its images.
        order: name of its training order; UNKNOWN or MAES if the checkpoint does not say.
        permutation, semantic_map: those of its training; None if unknown.
        target_name, target: likewise; a target of None is not compared with predictions.
    """

    name: str
    model: Predictor
    average: Predictor | None
    transform: Transform
    colours: Colours
    order: str
    permutation: Permutation | None
    semantic_map: SemanticMap | None
    target_name: str | None
    target: Target | None


def load(name: str, heading: str, tracking: Tracking) -> ShownModel:
    """Load a model to draw, with the transform of its images and what it was trained with.

    Raises:
        UserError: if the checkpoint has no model of semaim, or its order or map cannot be imported.
    """
    where = name.removeprefix(MLFLOW)
    path = tracking.run_folder(where) if where != name else Path(name).expanduser()
    state = read_checkpoint(path)
    stored = StoredEncoder(path, state, False, None, None)
    model = model_of(state, path, None, False).eval()
    mean, std = stored.normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    transform = evaluation(model.image_size, stored.crop_ratio or 0.875, mean, std)
    average = None if state.get("ema") is None else model_of(state, path, None, True).eval()
    config, chosen = (state.get(key, {}) if stored.is_semaim else {} for key in ("config", "choices"))
    permutation, semantic_map = (
        stored_part(config, group, stored.given, path) for group in ("permutation", "semantic_map")
    )
    target = None
    try:
        target = stored_part(config, "target", stored.given, path)
    except UserError as error:  # such as a teacher's weights that are elsewhere
        log.warning("no predictions are drawn, since the target of the training is not here: %s", error)
    order = chosen.get("permutation", UNKNOWN)
    if isinstance(model, MAE) and not stored.is_semaim:  # its pixels are not blurred
        order, target = MAES, Pixels(model.patch_size, blur_kernel_size=0)
    return ShownModel(
        heading, model, average, transform, Colours(mean, std), order, permutation, semantic_map, chosen.get("target"),
        target,
    )  # fmt: skip


def composed_orders(names: Sequence[str], folders: Sequence[str]) -> dict[str, Permutation]:
    """Choices of the group permutation, by name.

    Args:
        names: of the choices.
        folders: additional configuration folders.
    """
    orders = composition([f"+permutation@orders.{name}={name}" for name in names], folders).get("orders", {})
    return {name: instantiate(orders[name]) for name in names}


def short_names(names: Sequence[str]) -> list[str]:
    """Short headings for checkpoints: the last parts of their paths, without their common first and last words."""
    words = [Path(name).name.split("_") for name in names]
    for end in (0, -1):
        while len(words) > 1 and all(len(each) > 1 for each in words) and len({each[end] for each in words}) == 1:
            words = [each[1:] if end == 0 else each[:-1] for each in words]
    return ["_".join(each) for each in words]
