"""The encoder in a file or folder: of a semaim run, of SemAIM's or SAIM's code, or of another project."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from semaim.checkpoints import foreign, store
from semaim.checkpoints.foreign import ForeignEncoder
from semaim.checkpoints.formats import IMAGENET, Normalisation
from semaim.checkpoints.origin import Origin, origin_of
from semaim.checkpoints.two_stream import is_two_stream, load_weights, model_of, select_weights, unwrapped_weights
from semaim.core.files import read_json
from semaim.errors import UserError
from semaim.models.vit import Pool, build_vit, vit_of


class StoredEncoder:
    """An encoder from a file or folder, with its metadata.

    Args:
        path: path of the file or folder.
        state: its content (see `semaim.checkpoints.two_stream.read_checkpoint`).
        ema: use the moving average of the weights instead of the weights.
        num_heads: attention heads, if the file does not contain them and they are not the default for its width.
        architecture: timm model with the architecture of another project's file, if its weights do not determine it.

    Raises:
        UserError: for an option that does not apply to this checkpoint.
    """

    def __init__(
        self, path: Path, state: dict[str, Any], ema: bool, num_heads: int | None, architecture: str | None
    ) -> None:
        self.path = path
        self.state = state
        self.ema = ema
        self.num_heads = num_heads
        self.architecture = architecture
        self.fine_tuned: dict[str, Any] | None = (state.get("architecture") or {}).get("classifier")
        self.is_semaim = "architecture" in state
        self.weights = {} if self.is_semaim else unwrapped_weights(state)
        if architecture is not None and (self.is_semaim or is_two_stream(self.weights)):
            raise UserError(
                f"task.source.architecture={architecture} is for files of other projects, not checkpoint={path}"
            )
        if ema and not self.is_semaim:
            raise UserError(f"checkpoint={path} is not from a run of semaim, so it holds no moving average")

    @cached_property
    def foreign(self) -> ForeignEncoder | None:
        """The encoder of another project's file; None for semaim, SemAIM and SAIM."""
        if self.is_semaim or is_two_stream(self.weights):
            return None
        config = self._config()
        if "architecture" not in config:
            heads = self.num_heads or config.get("num_attention_heads")
            return foreign.recognise(self.weights, self.path, heads, self.architecture)
        if self.num_heads is not None or self.architecture is not None:
            raise UserError(f"the config.json of checkpoint={self.path} defines the model: leave task.source.num_heads "
                            f"and task.source.architecture null")  # fmt: skip
        return foreign.from_timm_config(config, self.weights, self.path)

    def _config(self) -> dict[str, Any]:
        return self._json_file("config.json")

    def _json_file(self, name: str) -> dict[str, Any]:
        """Content of a JSON file next to the weights in a folder of timm or transformers; else empty."""
        file = store.weights_file(self.path)
        if self.is_semaim or file is None or file.name not in store.WEIGHTS:
            return {}
        try:
            content = read_json(file.with_name(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{file.with_name(name)} is damaged ({error})") from error
        return content if isinstance(content, dict) else {}

    @property
    def num_classes(self) -> int:
        """Classes of its trained classifier; 0 for none."""
        if self.fine_tuned is not None:
            return int(self.fine_tuned["num_classes"])
        return 0 if self.foreign is None else self.foreign.num_classes

    def encoder(self) -> VisionTransformer:
        """The encoder; a fine-tuned semaim model keeps its head, which does not affect features."""
        if self.fine_tuned is not None:
            return self.trained_classifier()
        return self._two_stream(0, "cls", 0.0) if self.foreign is None else self.foreign.encoder()

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new head.

        Raises:
            UserError: if it is a fine-tuned semaim model.
        """
        if self.fine_tuned is not None:
            raise UserError(
                f"checkpoint={self.path} is fine-tuned already: task.eval_only=true evaluates it; to fine-tune, "
                f"give a pretrained checkpoint"
            )
        if self.foreign is None:
            return self._two_stream(num_classes, pool, drop_path)
        return self.foreign.classifier(num_classes, pool, drop_path)

    def trained_classifier(self) -> VisionTransformer:
        """The encoder with its trained head."""
        if self.fine_tuned is None:
            assert self.foreign is not None
            return self.foreign.trained_classifier()
        sizes, pool = self.fine_tuned["sizes"], self.fine_tuned["pool"]
        vit = build_vit(sizes, self.fine_tuned["num_classes"], pool, 0.0)
        load_weights(vit, select_weights(self.state, self.path, self.ema), self.path)
        return vit

    def _two_stream(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        return vit_of(model_of(self.state, self.path, self.num_heads, self.ema), num_classes, pool, drop_path)

    @property
    def origin(self) -> Origin | None:
        """Its origin, if stored: in semaim checkpoints, and in folders exported by semaim."""
        if "overrides" in self.state:
            return origin_of(self.state, self.ema)
        exported = self._config().get("semaim", {}).get("origin")
        return Origin(exported["tags"], exported["metrics"], exported["step"]) if exported else None

    @property
    def _eval_transform(self) -> dict[str, Any]:
        """Configuration of the evaluation transform of a semaim run; empty for others."""
        transform = self.state.get("config", {}).get("data", {}).get("eval_transform", {}) if self.is_semaim else {}
        return dict(transform)

    @property
    def normalisation(self) -> Normalisation | None:
        """Colour normalisation of its images; None if unknown."""
        if self.foreign is not None:
            preprocessor = self._json_file("preprocessor_config.json")
            if self.foreign.normalisation is None and {"image_mean", "image_std"} <= preprocessor.keys():
                return tuple(preprocessor["image_mean"]), tuple(preprocessor["image_std"])
            return self.foreign.normalisation
        if not self.is_semaim:
            return IMAGENET  # SemAIM and SAIM
        transform = self._eval_transform
        return (tuple(transform["mean"]), tuple(transform["std"])) if {"mean", "std"} <= transform.keys() else None

    @property
    def crop_ratio(self) -> float | None:
        """Side of the centre crop over the shorter side of the resized image; None if unknown."""
        ratio = self._eval_transform.get("crop_ratio", self._config().get("pretrained_cfg", {}).get("crop_pct"))
        return None if ratio is None else float(ratio)
