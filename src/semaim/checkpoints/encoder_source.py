"""The encoder to evaluate, from a run, file, folder, MLflow or timm, or with random weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semaim.checkpoints import timm_models
from semaim.checkpoints.foreign import USAGE_ARGS, is_vision_transformer
from semaim.checkpoints.formats import Normalisation
from semaim.checkpoints.origin import Origin
from semaim.checkpoints.pretrained import check_finite, read_checkpoint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.core.formatting import plural
from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.models.predictor import Predictor
from semaim.models.vit import Pool, resample_positions, vit_of, weights_checksum
from semaim.targets import Target

log = logging.getLogger(__name__)
TIMM, MLFLOW, RANDOM = "timm:", "mlflow:", "random"
# Model names whose configuration timm reads from elsewhere; it may be unavailable when the model is rebuilt.
CONFIG_LOADERS = {timm_models.LOCAL: load_model_config_from_path, "hf-hub:": load_model_config_from_hf}
HEAD_STD = 2e-5  # of the initial head weights in fine-tuning; MAE (arXiv 2111.06377), code of its appendix A.1


class Tracking(Protocol):
    """Interface of tracking: folders of tracked runs, and the command that compares them."""

    def run_folder(self, run_id: str) -> Path: ...

    def report_command(self) -> str | None: ...


@dataclass(eq=False)
class EncoderSource:
    """The encoder to evaluate.

    Args:
        checkpoint: a run folder, a folder of checkpoints, a checkpoint file (of semaim, of SemAIM's or SAIM's code, or
            of one of the families in `checkpoints.formats`), a folder of timm or transformers, `mlflow:<run id>`,
            `timm:<name>` (pretrained weights from the hub), or `random` (a new `model`).
        model: builds the model for `random`, given the target's channels.
        target: target of the pretraining; with the same seed, `random` is the initial encoder of that pretraining.
        tracking: resolves `mlflow:<run id>`.
        ema: use the moving average of the weights instead of the weights.
        num_heads: attention heads, if the file does not contain them and they are not the default for its width.
        architecture: timm model with the architecture of another project's file, if its weights do not determine it.
        interpolate: resample position embeddings to the data's image size, if it differs.
        image_size: image size of the data.
        mean, std: colour normalisation of the data; null if their transform has none.

    Raises:
        UserError: if no checkpoint is given, or an option does not apply to it.
    """

    checkpoint: str
    model: Callable[..., Predictor]
    target: Target
    tracking: Tracking
    ema: bool
    num_heads: int | None
    architecture: str | None
    interpolate: bool
    image_size: int | tuple[int, int]
    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            raise UserError(
                "an evaluation needs a checkpoint: set checkpoint=runs/<name> (or a file, mlflow:<run id>, "
                "timm:<name>, or random for comparison)"
            )
        self.from_file = self.checkpoint != RANDOM and not self.checkpoint.startswith(TIMM)
        if self.ema and not self.from_file:
            raise UserError(f"task.source.ema=true, but checkpoint={self.checkpoint} has no moving average")
        if self.architecture is not None and not self.from_file:
            raise UserError(
                f"task.source.architecture={self.architecture}, but checkpoint={self.checkpoint} defines its "
                f"architecture"
            )

    def encoder(self) -> VisionTransformer:
        """The encoder in eval mode; a head, if present, is not used."""
        return self._adapted(self._vit(0, "cls", 0.0)).eval()

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new linear head, for fine-tuning."""
        vit = self._adapted(self._vit(num_classes, pool, drop_path))
        nn.init.trunc_normal_(vit.head.weight, std=HEAD_STD)
        nn.init.zeros_(vit.head.bias)
        return vit

    def trained_classifier(self, num_classes: int) -> VisionTransformer:
        """The encoder with its trained head, in eval mode.

        Raises:
            UserError: if the checkpoint has no trained head, or the number of classes differs.
        """
        stored = self._stored
        if stored is None or stored.content.num_classes == 0:
            raise UserError(
                f"checkpoint={self.checkpoint} has no trained head, so there is nothing to evaluate without training: "
                f"fine-tune it first (task.eval_only=false), or give the run folder of a fine-tuning"
            )
        if stored.content.num_classes != num_classes:
            raise UserError(
                f"checkpoint={self.checkpoint} was fine-tuned for "
                f"{plural(stored.content.num_classes, 'class', 'es')}, the data have {num_classes}: choose the "
                f"data it was fine-tuned on (data=...)"
            )
        return self._adapted(stored.content.network(head=True)).eval()

    def _vit(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder, with a new head unless `num_classes` is 0."""
        if self.checkpoint == RANDOM:
            return vit_of(self.model(out_channels=self.target.channels), num_classes, pool, drop_path)
        stored = self._stored
        if stored is None:
            return self._from_timm(num_classes, pool, drop_path)
        if not num_classes:  # a fine-tuned model of semaim keeps its head, which does not affect features
            return stored.content.network(head=stored.fine_tuned is not None)
        if stored.fine_tuned is not None:
            raise UserError(
                f"{stored.given} is fine-tuned already: task.eval_only=true evaluates it; to fine-tune, "
                f"give a pretrained checkpoint"
            )
        return stored.content.classifier(num_classes, pool, drop_path)

    def _adapted(self, vit: VisionTransformer) -> VisionTransformer:
        """Resample positions to the data's image size if `interpolate`; warn if the normalisation differs."""
        own, wanted = pair(vit.patch_embed.img_size), pair(self.image_size)
        if self.interpolate and own != wanted:
            resample_positions(vit, wanted)
            log.info("positions of %dx%d pixels are resampled to %dx%d", *own, *wanted)
        expected = self._normalisation(vit)
        actual = None if self.mean is None or self.std is None else (tuple(self.mean), tuple(self.std))
        if actual is not None and expected is not None and expected != actual:
            mean, std = (f"[{','.join(f'{value:.6g}' for value in values)}]" for values in expected)
            log.warning("%s expects another colour normalisation than that of these data: data.train_transform.mean=%s "
                        "data.train_transform.std=%s", self.checkpoint, mean, std)  # fmt: skip
        return vit

    def _normalisation(self, vit: VisionTransformer) -> Normalisation | None:
        """Colour normalisation the encoder was trained with, if known."""
        if self._stored is not None:
            return self._stored.normalisation
        config = getattr(vit, "pretrained_cfg", None)
        return None if config is None else (tuple(config["mean"]), tuple(config["std"]))

    def _from_timm(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        name = self.checkpoint.removeprefix(TIMM)
        settings: dict[str, Any] = {}
        if num_classes:
            settings |= {"global_pool": "token" if pool == "cls" else "avg", "drop_path_rate": drop_path}
        try:
            vit = timm_models.create(name, True, num_classes=0, **settings)
        except timm_models.ModelUnavailable as error:
            raise UserError(
                f"checkpoint={self.checkpoint}: timm cannot load this model ({error}). Is it one of "
                f"timm.list_models(pretrained=True), and is there a network (or timm:local-dir:/path)?"
            ) from error
        if not is_vision_transformer(vit):
            raise UserError(f"checkpoint={self.checkpoint} is not a vision transformer, which semaim evaluates")
        check_finite(vit.state_dict(), f"checkpoint={self.checkpoint}")
        if num_classes:
            vit.reset_classifier(num_classes)
        vit.architecture = {"classifier": {"sizes": _sizes_of(name, vit), "num_classes": num_classes, "pool": pool}}
        return vit

    @cached_property
    def _stored(self) -> StoredEncoder | None:
        """The encoder in a file or folder; None for `random` and `timm:`."""
        if not self.from_file:
            return None
        if self.checkpoint.startswith(MLFLOW):
            path = self.tracking.run_folder(self.checkpoint.removeprefix(MLFLOW))
        else:
            path = Path(self.checkpoint).expanduser()
        return StoredEncoder(path, self._read(path), self.ema, self.num_heads, self.architecture)

    @property
    def path(self) -> Path | None:
        """The file or folder; None for `random` and `timm:`."""
        return None if self._stored is None else self._stored.path

    def _read(self, path: Path) -> dict[str, Any]:
        return read_checkpoint(path)

    def origin(self, seed: int, choices: dict[str, str]) -> Origin:
        """Origin of the encoder, as far as it is known.

        Args:
            seed: seed of this run; also that of a random encoder.
            choices: group choices of this run; they include the model of a random encoder.
        """
        if self.checkpoint == RANDOM:
            values = {"run": RANDOM, "seed": str(seed), "model": choices.get("model", "")}
            tags = {f"pretrained.{key}": value for key, value in values.items() if value}
            return Origin(tags, {"pretrained/epochs": 0.0, "pretrained/images_seen": 0.0})
        known = None if self._stored is None else self._stored.origin
        return known or Origin({"pretrained.run": self.checkpoint})


def _sizes_of(name: str, vit: VisionTransformer) -> dict[str, Any]:
    """Sizes for `build_vit` that rebuild a timm model, even if its folder or the network is unavailable."""
    load_config = next((load for prefix, load in CONFIG_LOADERS.items() if name.startswith(prefix)), None)
    if load_config is None:
        return {"timm": name}
    _, architecture, args = load_config(name.split(":", 1)[1])
    model_args = {key: value for key, value in args.items() if key not in USAGE_ARGS}
    return {"timm": architecture, "args": model_args | {"img_size": list(pair(vit.patch_embed.img_size))}}


def fingerprint(encoder: VisionTransformer) -> str:
    """Checksum of an encoder's architecture and weights, independent of the file format."""
    return weights_checksum(encoder, f"{encoder.architecture}{encoder}")
