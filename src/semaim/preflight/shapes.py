"""Tasks and data as `semaim check` builds them: networks have shapes but no values, on torch's meta device.

ViT-H takes milliseconds and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import TIMM, EncoderSource
from semaim.checkpoints.foreign import is_vision_transformer
from semaim.checkpoints.pretrained import read_checkpoint, start_from
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet, read_image
from semaim.data.pixels import Transform
from semaim.data.reading import Unreadable
from semaim.data.transforms import EVALUATION, transformed
from semaim.errors import UserError
from semaim.models.predictor import Predictor
from semaim.models.vit import Pool
from semaim.tasks.task import Task

ENCODER_SOURCE = "semaim.checkpoints.encoder_source.EncoderSource"


class EncoderShape(EncoderSource):
    """An encoder on the meta device, with shapes but no values, to check its type and fit.

    It replaces `EncoderSource` in an evaluation's configuration.
    """

    def encoder(self) -> VisionTransformer:
        return _meta_encoder(super().encoder)

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        return _meta_encoder(lambda: super(EncoderShape, self).classifier(num_classes, pool, drop_path))

    def trained_classifier(self, num_classes: int) -> VisionTransformer:
        return _meta_encoder(lambda: super(EncoderShape, self).trained_classifier(num_classes))

    def _read(self, path: Path) -> dict[str, Any]:
        return read_shapes(path)

    def _from_timm(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        name = self.checkpoint.removeprefix(TIMM)
        try:
            vit = timm.create_model(name, pretrained=False, num_classes=num_classes)  # without fetching weights
        except Exception as error:  # a missing name or file raises various types
            raise UserError(
                f"checkpoint={self.checkpoint}: timm has no such model ({error}): see timm.list_models(pretrained=True)"
            ) from error
        if not is_vision_transformer(vit):
            raise UserError(f"checkpoint={self.checkpoint} is not a vision transformer, which semaim evaluates")
        vit.architecture = {"classifier": {"sizes": {"timm": name}}}
        return vit


def _meta_encoder(build: Callable[[], VisionTransformer]) -> VisionTransformer:
    with torch.device("meta"):
        vit = build()
    vit.state_dict = dict  # empty: tasks would compute a checksum of the values
    return vit


def read_shapes(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, read and verified as for use, with tensors on the meta device.

    Raises:
        UserError: as `read_checkpoint`.
    """
    return _read_shapes(path, store.fingerprint(path))


@lru_cache(maxsize=64)
def _read_shapes(path: Path, _fingerprint: str | None) -> dict[str, Any]:
    state = read_checkpoint(path)
    return {key: _shapes(value) for key, value in state.items() if key not in ("optimizer", "rng")}


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return {key: _shapes(each) for key, each in value.items()} if isinstance(value, dict) else value


def open_data(cfg: DictConfig, fetch: bool) -> ImageData | None:
    """Open data and read one image of each part.

    Args:
        cfg: the `data` group of a configuration.
        fetch: download the data if a run would; else the result is None if they are not here yet.

    Raises:
        UserError: if they cannot be opened or read.
    """
    if not fetch and cfg.source.get("download"):
        cfg = cfg.copy()
        cfg.source.download = False
        with suppress(InstantiationException):
            return open_data(cfg, fetch=True)
        return None
    data: ImageData = instantiate(cfg, _convert_="all")
    for images in (data.splits.train, data.splits.val):
        if images is not None:
            try_transform(data.eval_transform, images, data.max_unreadable, EVALUATION)
    return data


def try_transform(transform: Transform, images: ImageSet, max_unreadable: int, option: str) -> None:
    """Transform the first readable image.

    Args:
        transform: to try.
        images: an image set.
        max_unreadable: images that may be unreadable before it.
        option: that chooses the transform, for messages.

    Raises:
        UserError: if there is none, or the transform fails.
    """
    for index in range(len(images)):
        try:
            image = read_image(images, index)
        except Unreadable as error:
            if index >= max_unreadable or index + 1 == len(images):
                raise UserError(f"{images.name(index)!r} cannot be read ({error}): repair or remove it") from error
        else:
            transformed(transform, image, images.name(index), option)
            return
    raise UserError("these data hold no image: see data.root")


def build_task(cfg: DictConfig, data: ImageData) -> Task:
    """Build the task of a configuration with its networks on the meta device.

    Args:
        cfg: a composed configuration.
        data: the data of its `data` group, which several tasks may share.

    Raises:
        UserError: for problems that the task detects.
        hydra.errors.HydraException: for invalid options.
    """
    given: dict[str, Any] = {"data": data} if "data" in cfg.task else {}
    if cfg.task.get("source") is not None and cfg.task.source._target_ == ENCODER_SOURCE:
        cfg = cfg.copy()
        cfg.task.source._target_ = f"{__name__}.{EncoderShape.__name__}"
    if cfg.task.get("model") is None:
        evaluation: Task = instantiate(cfg.task, **given, _convert_="all")
        return evaluation
    make = partial(_meta_model, instantiate(cfg.task.model, _convert_="all"))
    task = instantiate(cfg.task, **given, model=make, checkpoint=None, _convert_="all")
    if (start := cfg.task.get("checkpoint")) is not None:
        with torch.device("meta"):
            start_from(task.model, read_shapes(Path(start)), Path(start))
    return task


def _meta_model(build: Callable[..., Predictor], *args: Any, **kwargs: Any) -> Predictor:
    with torch.device("meta"):
        return build(*args, **kwargs)
