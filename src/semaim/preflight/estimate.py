"""Cost of runs, estimated from their configuration.

Models are built on torch's meta device, where tensors have shapes but no values, so ViT-H takes milliseconds and no
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from timm.models.vision_transformer import Block as ViTBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import TIMM, EncoderSource
from semaim.checkpoints.foreign import is_vision_transformer
from semaim.checkpoints.two_stream import load_weights, model_of, read_checkpoint
from semaim.core.distributed import Processes
from semaim.data.folders import UNREADABLE
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.flops import encoder_cost
from semaim.models.layers import Block
from semaim.models.vit import Pool
from semaim.preflight.memory import FLOAT32, moments, training_memory
from semaim.tasks.finetune import FineTuning
from semaim.tasks.linprobe import LinearProbe
from semaim.tasks.pretrain import Pretraining
from semaim.training import loop
from semaim.training.settings import PRECISIONS, TrainerSettings

TFLOPS = 120.0  # sustained by a GPU in training: 40 % of an A100's 312 in bf16
ENCODER_SOURCE = "semaim.checkpoints.encoder_source.EncoderSource"


@dataclass(frozen=True)
class Estimate:
    """Cost of a run; None for unknown values.

    Attributes:
        encoder_parameters, parameters: of the encoder, and of the whole network.
        flops: floating-point operations per image: of a training step, or of a forward pass if the encoder is frozen.
        images: number of images processed, in all.
        steps: of training, in all.
        memory: bytes on each process during training.
        checkpoints: bytes on disk at the end.
    """

    encoder_parameters: int
    parameters: int
    flops: int
    images: int
    steps: int | None = None
    memory: int | None = None
    checkpoints: int = 0


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


def open_data(cfg: DictConfig) -> ImageData:
    """Open data and read one image of each part; raises UserError if this fails."""
    data: ImageData = instantiate(cfg, _convert_="all")
    for images in (data.splits.train, data.splits.val):
        if images is not None:
            data.eval_transform(first_image(images, data.max_unreadable))
    return data


def first_image(images: ImageSet, max_unreadable: int) -> Image.Image:
    """The first readable image; raises UserError if too many before it are unreadable."""
    for index in range(len(images)):
        try:
            return images.read(index)
        except UNREADABLE as error:
            if index >= max_unreadable or index + 1 == len(images):
                raise UserError(f"{images.name(index)} cannot be read ({error}): repair or remove it") from error
    raise UserError("these data hold no image: see data.root")


def build_task(cfg: DictConfig, data: ImageData) -> Any:
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
        return instantiate(cfg.task, **given, _convert_="all")
    make = partial(_meta_model, instantiate(cfg.task.model, _convert_="all"))
    task = instantiate(cfg.task, **given, model=make, checkpoint=None, _convert_="all")
    if (start := cfg.task.get("checkpoint")) is not None:
        model = _meta_model(model_of, read_shapes(Path(start)), Path(start), None, False)
        load_weights(task.model, model.state_dict(), Path(start))
    return task


def _meta_model(build: Callable[..., AIM], *args: Any, **kwargs: Any) -> AIM:
    with torch.device("meta"):
        return build(*args, **kwargs)


def estimate(task: Any, seed: int, processes: int, on_gpu: bool) -> Estimate | None:
    """Cost of a run of a task; None for an unknown type of task.

    Images for evaluations during training are not counted.

    Args:
        task: from `build_task`.
        seed: of the run.
        processes: number of processes.
        on_gpu: whether they run on GPUs, where trainer.precision=auto means bf16.

    Raises:
        UserError: if batch, data and processes do not fit together, or for invalid options of the optimizer.
    """
    finetunes = isinstance(task, FineTuning)
    if isinstance(task, Pretraining):
        spent = task.spent()
    elif (vit := task.model if finetunes else getattr(task, "vit", None)) is not None:
        spent = encoder_cost(vit)
    else:
        return None
    sizes = spent.encoder_parameters, spent.parameters
    if not isinstance(task, Pretraining | LinearProbe) and not (finetunes and not task.eval_only):
        splits = task.data.splits  # one pass over the images
        training_images = 0 if finetunes else len(splits.labelled or splits.train)
        return Estimate(*sizes, spent.encode, training_images + (0 if splits.val is None else len(splits.val)))
    trainer: TrainerSettings = task.trainer
    plan = loop.step_plan(task, trainer, seed, Processes(0, processes, torch.device("cpu")))
    steps, moment_count = trainer.last_step(plan.steps_per_epoch), moments(task.optimizer, task.model)
    flops = spent.encode if isinstance(task, LinearProbe) else spent.training_step
    memory = None
    if isinstance(getattr(task.model, "blocks", [None])[0], Block | ViTBlock):
        itemsize = PRECISIONS.get(trainer.precision, torch.bfloat16 if on_gpu else torch.float32).itemsize
        memory = training_memory(task.model, plan.micro_batch_size, itemsize, moment_count, trainer.ema)
        if (teacher := getattr(task, "teacher", None)) is not None:
            memory += FLOAT32 * teacher.parameters
    files = trainer.keep_checkpoints + 1  # the new one is written before the oldest is deleted
    if trainer.milestone_every_epochs is not None:
        files += steps // (plan.steps_per_epoch * trainer.milestone_every_epochs)
    size = sum(p.numel() for p in task.model.parameters()) * FLOAT32 * (1 + moment_count + trainer.ema)
    return Estimate(*sizes, flops, steps * trainer.batch_size, steps, memory, size * min(files, steps))
