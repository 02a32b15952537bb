"""The encoder in a file or folder: of a run of ours, of SemAIM's or SAIM's code, or of another project."""

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
from semaim.checkpoints.two_stream import bare_weights, chosen_weights, is_two_stream, load_weights, model_of
from semaim.core.files import read_json
from semaim.errors import UserError
from semaim.models.vit import Pool, build_vit, vit_of


class StoredEncoder:
    """An encoder, and what is known of it.

    Args:
        path: of the file or folder.
        state: what it holds (see `semaim.checkpoints.two_stream.read_checkpoint`).
        ema: take the moving average of the weights instead of the weights.
        num_heads: attention heads of a file that does not tell them, if not the usual number for its width.
        architecture: a model of timm's with the parts of another project's file, where its weights do not tell them.

    Raises:
        UserError: for an option that does not go with this checkpoint.
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
        self.ours = "architecture" in state
        self.weights = {} if self.ours else bare_weights(state)
        if architecture is not None and (self.ours or is_two_stream(self.weights)):
            raise UserError(
                f"task.source.architecture={architecture} is for files of other projects, not checkpoint={path}"
            )
        if ema and not self.ours:
            raise UserError(f"checkpoint={path} is not from a run of semaim, so it holds no moving average")

    @cached_property
    def foreign(self) -> ForeignEncoder | None:
        """The encoder of another project's file; None for ours and official ones."""
        if self.ours or is_two_stream(self.weights):
            return None
        config = self._config()
        if "architecture" not in config:
            heads = self.num_heads or config.get("num_attention_heads")
            return foreign.recognise(self.weights, self.path, heads, self.architecture)
        if self.num_heads is not None or self.architecture is not None:
            raise UserError(f"the config.json of checkpoint={self.path} says what it is: leave task.source.num_heads "
                            f"and task.source.architecture null")  # fmt: skip
        return foreign.of_timm(config, self.weights, self.path)

    def _config(self) -> dict[str, Any]:
        return self._beside("config.json")

    def _beside(self, name: str) -> dict[str, Any]:
        """What a file says that stands beside the weights in a folder of timm's or transformers'."""
        file = store.weights_file(self.path)
        if self.ours or file is None or file.name not in store.WEIGHTS:
            return {}
        try:
            said = read_json(file.with_name(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{file.with_name(name)} is damaged ({error})") from error
        return said if isinstance(said, dict) else {}

    @property
    def num_classes(self) -> int:
        """Of the classifier that was trained on it; 0 for none."""
        if self.fine_tuned is not None:
            return int(self.fine_tuned["num_classes"])
        return 0 if self.foreign is None else self.foreign.num_classes

    def encoder(self) -> VisionTransformer:
        """The encoder; what a fine-tuning of ours made keeps its head, which does nothing to features."""
        if self.fine_tuned is not None:
            return self.trained_classifier()
        return self._two_stream(0, "cls", 0.0) if self.foreign is None else self.foreign.encoder()

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new head.

        Raises:
            UserError: if a fine-tuning of ours made it.
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
        """The encoder with the head that was trained on it, if there is one."""
        if self.fine_tuned is None:
            assert self.foreign is not None
            return self.foreign.trained_classifier()
        sizes, pool = self.fine_tuned["sizes"], self.fine_tuned["pool"]
        vit = build_vit(sizes, self.fine_tuned["num_classes"], pool, 0.0)
        load_weights(vit, chosen_weights(self.state, self.path, self.ema), self.path)
        return vit

    def _two_stream(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        return vit_of(model_of(self.state, self.path, self.num_heads, self.ema), num_classes, pool, drop_path)

    @property
    def origin(self) -> Origin | None:
        """Where it was pretrained, if it says so: as our checkpoints do, and folders that semaim exported."""
        if "overrides" in self.state:
            return origin_of(self.state, self.ema)
        written = self._config().get("semaim", {}).get("origin")
        return Origin(written["tags"], written["metrics"], written["step"]) if written else None

    @property
    def _preparation(self) -> dict[str, Any]:
        """How our run prepared images to evaluate it; empty for others."""
        found = self.state.get("config", {}).get("data", {}).get("eval_transform", {}) if self.ours else {}
        return dict(found)

    @property
    def normalisation(self) -> Normalisation | None:
        """That of the images it was made for; None if it is not known."""
        if self.foreign is not None:
            theirs = self._beside("preprocessor_config.json")
            if self.foreign.normalisation is None and {"image_mean", "image_std"} <= theirs.keys():
                return tuple(theirs["image_mean"]), tuple(theirs["image_std"])
            return self.foreign.normalisation
        if not self.ours:
            return IMAGENET  # SemAIM and SAIM
        ours = self._preparation
        return (tuple(ours["mean"]), tuple(ours["std"])) if {"mean", "std"} <= ours.keys() else None

    @property
    def crop_ratio(self) -> float | None:
        """Side of the centre crop of its images over the shorter side before; None if it is not known."""
        found = self._preparation.get("crop_ratio", self._config().get("pretrained_cfg", {}).get("crop_pct"))
        return None if found is None else float(found)
