"""Which encoder is evaluated: of a run, a file, MLflow or timm, or a random one; and what is known of its origin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semaim.errors import UserError
from semaim.interop import chosen_weights, load_weights, model_of, read_checkpoint
from semaim.models.aim import AIM
from semaim.models.vit import Pool, build_vit, vit_of, weights_checksum
from semaim.runfolder import asked_besides

log = logging.getLogger(__name__)
TIMM, MLFLOW, RANDOM = "timm:", "mlflow:", "random"
HEAD_STD = 2e-5  # of a fine-tuned head at the start; MAE (arXiv 2111.06377), code of its appendix A.1


class Tracking(Protocol):
    """What knows the folders of tracked runs, and how to compare them."""

    def run_folder(self, run_id: str) -> Path: ...

    def how_to_compare(self) -> str | None: ...


class Target(Protocol):
    """What knows how many channels a model predicts."""

    @property
    def channels(self) -> int: ...


@dataclass(frozen=True)
class Origin:
    """Where an encoder is from.

    Attributes:
        tags: names of what it was pretrained with, as `pretrained.<what>`.
        metrics: how long, as `pretrained/<what>`.
        step: of its pretraining.
        data: configuration of the data it was pretrained on, if known.
    """

    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    data: dict[str, Any] | None = None


class EncoderSource:
    """The encoder to evaluate.

    Args:
        checkpoint: a run folder, a folder of checkpoints, a checkpoint file (ours, or one of SemAIM's or SAIM's code),
            `mlflow:<run id>`, `timm:<name>` (pretrained weights from the hub), or `random` (a new `model`).
        model: makes the model that `random` means, given the target's channels.
        target: of the pretraining that `random` stands before: with the same seed, it is that encoder.
        tracking: where `mlflow:<run id>` is looked up.
        ema: take the moving average of the weights instead of the weights.
        num_heads: attention heads of an official checkpoint, if not the usual number for its width.

    Raises:
        UserError: if no checkpoint is named.
    """

    def __init__(
        self,
        checkpoint: str | None,
        model: Callable[..., AIM],
        target: Target,
        tracking: Tracking,
        ema: bool,
        num_heads: int | None,
    ) -> None:
        if checkpoint is None:
            raise UserError(
                "an evaluation needs a checkpoint: say which with checkpoint=runs/<name> (or a file, mlflow:<run id>, "
                "timm:<name>, or random for comparison)"
            )
        if ema and (checkpoint == RANDOM or checkpoint.startswith(TIMM)):
            raise UserError(f"task.source.ema=true, but checkpoint={checkpoint} has no moving average")
        self.checkpoint = checkpoint
        self.model = model
        self.target = target
        self.tracking = tracking
        self.ema = ema
        self.num_heads = num_heads

    def encoder(self) -> VisionTransformer:
        """The encoder without a head, in eval mode."""
        return self._vit(0, "cls", 0.0).eval()

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new linear head, for fine-tuning."""
        vit = self._vit(num_classes, pool, drop_path)
        nn.init.trunc_normal_(vit.head.weight, std=HEAD_STD)
        nn.init.zeros_(vit.head.bias)
        return vit

    def trained_classifier(self, num_classes: int) -> VisionTransformer:
        """The encoder with the head that was trained for it, in eval mode.

        Raises:
            UserError: if the checkpoint has no trained head, or one for another number of classes.
        """
        classifier = self._classifier
        if classifier is None:
            raise UserError(
                f"checkpoint={self.checkpoint} has no trained head, so there is nothing to evaluate without training: "
                f"fine-tune it first (task.eval_only=false), or give the run folder of a fine-tuning"
            )
        if classifier["num_classes"] != num_classes:
            raise UserError(
                f"checkpoint={self.checkpoint} was fine-tuned for {classifier['num_classes']} classes, the data have "
                f"{num_classes}: choose the data it was fine-tuned on (data=...)"
            )
        return self._as_fine_tuned(classifier).eval()

    def _vit(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        if self.checkpoint.startswith(TIMM):
            return self._from_timm(num_classes, pool, drop_path)
        if self.checkpoint == RANDOM:
            return vit_of(self.model(out_channels=self.target.channels), num_classes, pool, drop_path)
        assert self._state is not None
        classifier = self._classifier
        if classifier is None:
            return vit_of(model_of(self._state, self._path, self.num_heads, self.ema), num_classes, pool, drop_path)
        if num_classes:
            raise UserError(
                f"checkpoint={self.checkpoint} is fine-tuned already: task.eval_only=true evaluates it; to fine-tune, "
                f"give a pretrained checkpoint"
            )
        return self._as_fine_tuned(classifier)

    def _as_fine_tuned(self, classifier: dict[str, Any]) -> VisionTransformer:
        """The model that a fine-tuning saved, head and all."""
        vit = build_vit(classifier["sizes"], classifier["num_classes"], classifier["pool"], 0.0)
        load_weights(vit, chosen_weights(self._state or {}, self._path, self.ema), self._path)
        return vit

    def _from_timm(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        name = self.checkpoint.removeprefix(TIMM)
        settings: dict[str, Any] = {}
        if num_classes:
            settings |= {"global_pool": "token" if pool == "cls" else "avg", "drop_path_rate": drop_path}
        try:
            vit = timm.create_model(name, pretrained=True, num_classes=0, **settings)
        except Exception as error:  # what an absent name, network or file raises differs
            said = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"checkpoint={self.checkpoint}: timm cannot give this model ({said}). Is it one of "
                f"timm.list_models(pretrained=True), and is there a network (or timm:local-dir:/path)?"
            ) from error
        if not hasattr(vit, "num_prefix_tokens") or not hasattr(vit, "blocks"):
            raise UserError(f"checkpoint={self.checkpoint} is not a vision transformer, which semaim evaluates")
        if num_classes:
            vit.reset_classifier(num_classes)
        mean, std = (list(vit.pretrained_cfg[key]) for key in ("mean", "std"))
        log.info("%s was made for data.train_transform.mean=%s data.train_transform.std=%s", name, mean, std)
        vit.architecture = {"classifier": {"sizes": {"timm": name}, "num_classes": num_classes, "pool": pool}}
        return vit

    @cached_property
    def _path(self) -> Path:
        if self.checkpoint.startswith(MLFLOW):
            return self.tracking.run_folder(self.checkpoint.removeprefix(MLFLOW))
        return Path(self.checkpoint).expanduser()

    @cached_property
    def _state(self) -> dict[str, Any] | None:
        """What the checkpoint file holds; None for encoders that come from no file."""
        if self.checkpoint == RANDOM or self.checkpoint.startswith(TIMM):
            return None
        return read_checkpoint(self._path)

    @property
    def _classifier(self) -> dict[str, Any] | None:
        """What describes a fine-tuned model, if the checkpoint is of one."""
        return ((self._state or {}).get("architecture") or {}).get("classifier")

    def origin(self, seed: int, choices: dict[str, str]) -> Origin:
        """What is known of the encoder's pretraining.

        Args:
            seed: of this run, which a random encoder is made with.
            choices: of this run's configuration, one of which is a random encoder's model.
        """
        if self.checkpoint == RANDOM:
            made = {"run": RANDOM, "seed": str(seed), "model": choices.get("model", "")}
            tags = {f"pretrained.{key}": value for key, value in made.items() if value}
            return Origin(tags, {"pretrained/epochs": 0.0, "pretrained/images_seen": 0.0})
        if self._state is None or "overrides" not in self._state:
            return Origin({"pretrained.run": self.checkpoint})
        return origin_of(self._state, self.ema)


def origin_of(state: dict[str, Any], ema: bool) -> Origin:
    """Where the encoder in one of our checkpoints is from; that of a fine-tuned model is where it was pretrained."""
    if (before := state["task"].get("origin")) is not None:
        return Origin(**before)
    choices, position = state["choices"], state["data_position"]
    options = asked_besides((*choices, "seed", "data.root"), state["overrides"])
    made = {key: choices[key] for key in ("model", "permutation", "target", "data") if key in choices}
    made |= {
        "run": Path(state["config"]["run_dir"]).name,
        "seed": str(state["config"]["seed"]),
        "device": state["device"],
        "options": " ".join(option for option in options if not option.startswith("task.")),  # which only measures
        "weights": "moving average" if ema else "",
    }
    metrics = {
        "epochs": position["epochs"],
        "images_seen": float(position["images_seen"]),
        "device_hours": state["device_seconds"] / 3600,
    }
    return Origin(
        {f"pretrained.{key}": value for key, value in made.items() if value},
        {f"pretrained/{key}": value for key, value in metrics.items()},
        state["step"],
        state["config"]["data"],
    )


def fingerprint(encoder: VisionTransformer) -> str:
    """Checksum of an encoder's shape and weights: the same for the same encoder, whatever file it came from."""
    return weights_checksum(encoder, f"{encoder.architecture}{encoder}")
