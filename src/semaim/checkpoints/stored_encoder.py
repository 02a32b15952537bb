"""The encoder in a file or folder: of a semaim run, of SemAIM's or SAIM's code, or of another project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch

from semaim.checkpoints import foreign, store
from semaim.checkpoints.encoder_weights import EncoderWeights
from semaim.checkpoints.formats import IMAGENET, Normalisation, unwrapped
from semaim.checkpoints.origin import Origin, origin_of
from semaim.checkpoints.pretrained import MODELS, TWO_STREAM, check_weights, is_two_stream, model_of, select_weights
from semaim.core.files import adapter, read_json
from semaim.errors import UserError
from semaim.models.vit import SIZES, build_vit

T = TypeVar("T")


def _of_file(read: Callable[[StoredEncoder], T]) -> Callable[[StoredEncoder], T]:
    """Decorate what reads parts of the file: raise UserError for one that is missing or of another kind."""

    @wraps(read)
    def method(stored: StoredEncoder) -> T:
        try:
            return read(stored)
        except (UserError, OSError):
            raise
        except Exception as error:  # a value of another kind raises any exception where it is used
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(
                f"{stored.given} is damaged, was changed, or is of another version ({reason}): choose another"
            ) from error

    return method


@dataclass(eq=False)
class StoredEncoder:
    """An encoder from a file or folder, with its metadata.

    Args:
        path: path of the file or folder.
        state: its content (see `semaim.checkpoints.pretrained.read_checkpoint`).
        ema: use the moving average of the weights instead of the weights.
        num_heads: attention heads, if the file does not contain them and they are not the default for its width.
        architecture: timm model with the architecture of another project's file, if its weights do not determine it.
        option: configuration option that gave the path, for messages.
        projection: keep CLIP's projection as the head.

    Raises:
        UserError: for an option that does not apply to this checkpoint.
    """

    path: Path
    state: dict[str, Any]
    ema: bool
    num_heads: int | None
    architecture: str | None
    option: str = "checkpoint"
    projection: bool = False

    @_of_file
    def __post_init__(self) -> None:
        self.given = f"{self.option}={self.path}"
        self.fine_tuned: dict[str, Any] | None = (self.state.get("architecture") or {}).get("classifier")
        self.is_semaim = "architecture" in self.state
        self.weights = {} if self.is_semaim else unwrapped(self.state)
        self.is_foreign = not self.is_semaim and not is_two_stream(self.weights)
        if self.architecture is not None and not self.is_foreign:
            raise UserError(
                f"task.source.architecture={self.architecture} is for files of other projects, not {self.given}"
            )
        if self.ema and not self.is_semaim:
            raise UserError(f"{self.given} is not from a run of semaim, so it holds no moving average")

    @cached_property
    @_of_file
    def content(self) -> EncoderWeights:
        """Its weights by timm's names, and what rebuilds it.

        Raises:
            UserError: if it is no encoder, or its weights do not fit its architecture.
        """
        if self.fine_tuned is not None:
            sizes, classes, pool = (self.fine_tuned[key] for key in ("sizes", "num_classes", "pool"))
            weights = select_weights(self.state, self.given, self.ema)
            with torch.device("meta"):
                expected = build_vit(sizes, classes, pool, 0.0).state_dict()
            check_weights(expected, weights, self.given)
            return EncoderWeights(sizes, pool, classes, weights)
        architecture = self.state.get("architecture")
        if architecture is not None and architecture.get("model", TWO_STREAM) not in MODELS:
            return self._of_own_model(architecture)
        if not self.is_foreign:
            model = model_of(self.state, self.path, self.num_heads, self.ema, self.option)
            sizes = {key: model.architecture[key] for key in SIZES}
            return EncoderWeights(sizes, "cls", 0, model.state_dict())
        config = self._json_file("config.json")
        if "architecture" in config:
            if self.num_heads is not None or self.architecture is not None:
                raise UserError(f"the config.json of {self.given} defines the model: leave task.source.num_heads and "
                                f"task.source.architecture null")  # fmt: skip
            return foreign.from_timm_config(config, self.weights, self.given)
        heads = self.num_heads or config.get("num_attention_heads")
        return foreign.recognise(self.weights, self.given, heads, self.architecture, self.projection)

    def _of_own_model(self, architecture: dict[str, Any]) -> EncoderWeights:
        """The encoder of a model that is a class of the user's, which need not be there any more."""
        if missing := [key for key in SIZES if key not in architecture]:
            raise UserError(f"{self.given} is of a model of your own whose architecture lacks {', '.join(missing)}")
        sizes = {key: architecture[key] for key in SIZES}
        weights = select_weights(self.state, self.given, self.ema)
        with torch.device("meta"):
            expected = build_vit(sizes, 0, "cls", 0.0).state_dict()
        check_weights(expected, {name: value for name, value in weights.items() if name in expected}, self.given)
        return EncoderWeights(sizes, "cls", 0, weights)

    def _json_file(self, name: str) -> dict[str, Any]:
        """Content of a JSON file next to the weights in a folder of timm or transformers; else empty."""
        file = store.weights_file(self.path)
        if self.is_semaim or file is None or file.name not in store.WEIGHTS:
            return {}
        return read_json(file.with_name(name), dict[str, Any]) or {}

    @property
    @_of_file
    def origin(self) -> Origin | None:
        """Its origin, if stored: in semaim checkpoints, and in folders exported by semaim."""
        if "overrides" in self.state:
            store.check_parts(self.state, self.given, sorted(store.PARTS.keys() - {"loss", "model", "rng"}))
            return origin_of(self.state, self.ema)
        exported = self._json_file("config.json").get("semaim", {}).get("origin")
        return adapter(Origin).validate_python(exported) if exported else None

    @property
    def _eval_transform(self) -> dict[str, Any]:
        """Configuration of the evaluation transform of a semaim run; empty for others."""
        transform = self.state.get("config", {}).get("data", {}).get("eval_transform", {}) if self.is_semaim else {}
        return dict(transform)

    @property
    @_of_file
    def normalisation(self) -> Normalisation | None:
        """Colour normalisation of its images; None if unknown."""
        if self.is_foreign:
            preprocessor = self._json_file("preprocessor_config.json")
            if self.content.normalisation is None and {"image_mean", "image_std"} <= preprocessor.keys():
                return _colours(preprocessor, "image_mean", "image_std")
            return self.content.normalisation
        if not self.is_semaim:
            return IMAGENET  # SemAIM and SAIM
        transform = self._eval_transform
        return _colours(transform, "mean", "std") if {"mean", "std"} <= transform.keys() else None

    @property
    @_of_file
    def crop_ratio(self) -> float | None:
        """Sides of the centre crop over those that the resized image covers; None if unknown."""
        ratio = self._eval_transform.get(
            "crop_ratio", self._json_file("config.json").get("pretrained_cfg", {}).get("crop_pct")
        )
        return None if ratio is None else float(ratio)


def _colours(values: dict[str, Any], mean: str, std: str) -> Normalisation:
    return tuple(map(float, values[mean])), tuple(map(float, values[std]))
