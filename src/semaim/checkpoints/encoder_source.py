"""Which encoder is evaluated: of a run, a file, a folder, MLflow or timm, or a random one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semaim.checkpoints import timm_models
from semaim.checkpoints.foreign import SET_BY_USE, is_vision_transformer
from semaim.checkpoints.formats import Normalisation
from semaim.checkpoints.origin import Origin
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.checkpoints.two_stream import read_checkpoint
from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.vit import Pool, resample_positions, vit_of, weights_checksum

log = logging.getLogger(__name__)
TIMM, MLFLOW, RANDOM = "timm:", "mlflow:", "random"
# What timm builds from a configuration elsewhere, which may not be there when it is built again.
CONFIGURED = {timm_models.LOCAL: load_model_config_from_path, "hf-hub:": load_model_config_from_hf}
HEAD_STD = 2e-5  # of a fine-tuned head at the start; MAE (arXiv 2111.06377), code of its appendix A.1


class Tracking(Protocol):
    """What knows the folders of tracked runs, and how to compare them."""

    def run_folder(self, run_id: str) -> Path: ...

    def report_command(self) -> str | None: ...


class Target(Protocol):
    """What knows how many channels a model predicts."""

    @property
    def channels(self) -> int: ...


class EncoderSource:
    """The encoder to evaluate.

    Args:
        checkpoint: a run folder, a folder of checkpoints, a checkpoint file (ours, one of SemAIM's or SAIM's code, or
            one of the families in `checkpoints.formats`), a folder of timm's or transformers', `mlflow:<run id>`,
            `timm:<name>` (pretrained weights from the hub), or `random` (a new `model`).
        model: makes the model that `random` means, given the target's channels.
        target: of the pretraining that `random` stands before: with the same seed, it is that encoder.
        tracking: where `mlflow:<run id>` is looked up.
        ema: take the moving average of the weights instead of the weights.
        num_heads: attention heads of a file that does not tell them, if not the usual number for its width.
        architecture: a model of timm's with the parts of another project's file, where its weights do not tell them.
        interpolate: resample position embeddings to the size of the data's images, if it is another.
        image_size: of the data.
        mean, std: colour normalisation of the data; null if their transform has none.

    Raises:
        UserError: if no checkpoint is named, or an option does not go with it.
    """

    def __init__(
        self,
        checkpoint: str | None,
        model: Callable[..., AIM],
        target: Target,
        tracking: Tracking,
        ema: bool,
        num_heads: int | None,
        architecture: str | None,
        interpolate: bool,
        image_size: int | tuple[int, int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        if checkpoint is None:
            raise UserError(
                "an evaluation needs a checkpoint: say which with checkpoint=runs/<name> (or a file, mlflow:<run id>, "
                "timm:<name>, or random for comparison)"
            )
        self.in_a_file = checkpoint != RANDOM and not checkpoint.startswith(TIMM)
        if ema and not self.in_a_file:
            raise UserError(f"task.source.ema=true, but checkpoint={checkpoint} has no moving average")
        if architecture is not None and not self.in_a_file:
            raise UserError(f"task.source.architecture={architecture}, but checkpoint={checkpoint} says what it is")
        self.checkpoint = checkpoint
        self.model = model
        self.target = target
        self.tracking = tracking
        self.ema = ema
        self.num_heads = num_heads
        self.architecture = architecture
        self.interpolate = interpolate
        self.image_size = pair(image_size)
        self.data_normalisation = None if mean is None or std is None else (tuple(mean), tuple(std))

    def encoder(self) -> VisionTransformer:
        """The encoder, whose head (if it has one) is of no account, in eval mode."""
        return self._fitted(self._vit(0, "cls", 0.0)).eval()

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new linear head, for fine-tuning."""
        vit = self._fitted(self._vit(num_classes, pool, drop_path))
        nn.init.trunc_normal_(vit.head.weight, std=HEAD_STD)
        nn.init.zeros_(vit.head.bias)
        return vit

    def trained_classifier(self, num_classes: int) -> VisionTransformer:
        """The encoder with the head that was trained for it, in eval mode.

        Raises:
            UserError: if the checkpoint has no trained head, or one for another number of classes.
        """
        stored = self._stored
        if stored is None or stored.num_classes == 0:
            raise UserError(
                f"checkpoint={self.checkpoint} has no trained head, so there is nothing to evaluate without training: "
                f"fine-tune it first (task.eval_only=false), or give the run folder of a fine-tuning"
            )
        if stored.num_classes != num_classes:
            raise UserError(
                f"checkpoint={self.checkpoint} was fine-tuned for {stored.num_classes} classes, the data have "
                f"{num_classes}: choose the data it was fine-tuned on (data=...)"
            )
        return self._fitted(stored.trained_classifier()).eval()

    def _vit(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder, with a new head for any classes."""
        if self.checkpoint == RANDOM:
            return vit_of(self.model(out_channels=self.target.channels), num_classes, pool, drop_path)
        if self._stored is None:
            return self._from_timm(num_classes, pool, drop_path)
        return self._stored.classifier(num_classes, pool, drop_path) if num_classes else self._stored.encoder()

    def _fitted(self, vit: VisionTransformer) -> VisionTransformer:
        """The encoder for images of the data's size, if that is asked for; says what they should be like."""
        if self.interpolate and pair(vit.patch_embed.img_size) != self.image_size:
            h, w = pair(vit.patch_embed.img_size)
            resample_positions(vit, self.image_size)
            log.info("positions of %dx%d pixels are resampled to %dx%d", h, w, *self.image_size)
        theirs, ours = self._normalisation(vit), self.data_normalisation
        if ours is not None and theirs is not None and theirs != ours:
            mean, std = (f"[{','.join(f'{value:.6g}' for value in values)}]" for values in theirs)
            log.warning("%s was made for images normalised otherwise than these data's: data.train_transform.mean=%s "
                        "data.train_transform.std=%s", self.checkpoint, mean, std)  # fmt: skip
        return vit

    def _normalisation(self, vit: VisionTransformer) -> Normalisation | None:
        """That of the images an encoder was made for, if it is known."""
        if self._stored is not None:
            return self._stored.normalisation
        card = getattr(vit, "pretrained_cfg", None)
        return None if card is None else (tuple(card["mean"]), tuple(card["std"]))

    def _from_timm(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        name = self.checkpoint.removeprefix(TIMM)
        settings: dict[str, Any] = {}
        if num_classes:
            settings |= {"global_pool": "token" if pool == "cls" else "avg", "drop_path_rate": drop_path}
        try:
            vit = timm_models.create(name, True, num_classes=0, **settings)
        except timm_models.Absent as said:
            raise UserError(
                f"checkpoint={self.checkpoint}: timm cannot give this model ({said}). Is it one of "
                f"timm.list_models(pretrained=True), and is there a network (or timm:local-dir:/path)?"
            ) from said
        if not is_vision_transformer(vit):
            raise UserError(f"checkpoint={self.checkpoint} is not a vision transformer, which semaim evaluates")
        if num_classes:
            vit.reset_classifier(num_classes)
        vit.architecture = {"classifier": {"sizes": _sizes_of(name, vit), "num_classes": num_classes, "pool": pool}}
        return vit

    @cached_property
    def _stored(self) -> StoredEncoder | None:
        """The encoder in a file or folder; None for those that come from neither."""
        if not self.in_a_file:
            return None
        if self.checkpoint.startswith(MLFLOW):
            path = self.tracking.run_folder(self.checkpoint.removeprefix(MLFLOW))
        else:
            path = Path(self.checkpoint).expanduser()
        return StoredEncoder(path, self._read(path), self.ema, self.num_heads, self.architecture)

    def _read(self, path: Path) -> dict[str, Any]:
        return read_checkpoint(path)

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
        known = None if self._stored is None else self._stored.origin
        return known or Origin({"pretrained.run": self.checkpoint})


def _sizes_of(name: str, vit: VisionTransformer) -> dict[str, Any]:
    """What builds a model of timm's again, also when the folder or the network that told its sizes is away."""
    read = next((read for start, read in CONFIGURED.items() if name.startswith(start)), None)
    if read is None:
        return {"timm": name}
    _, architecture, args = read(name.split(":", 1)[1])
    plain = {key: value for key, value in args.items() if key not in SET_BY_USE}
    return {"timm": architecture, "args": plain | {"img_size": list(pair(vit.patch_embed.img_size))}}


def fingerprint(encoder: VisionTransformer) -> str:
    """Checksum of an encoder's shape and weights: the same for the same encoder, whatever file it came from."""
    return weights_checksum(encoder, f"{encoder.architecture}{encoder}")
