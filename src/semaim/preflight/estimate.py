"""What runs need, told from their configuration alone, and whether it is there: on a SLURM cluster, a disk, a server.

Models are built on torch's meta device, where tensors have shapes and no values. So ViT-H takes milliseconds and no
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
from semaim.core.formatting import count, plural
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

TFLOPS = 120.0  # that a GPU sustains in training: 40 % of an A100's 312 in bf16
COLUMNS = (
    "run",
    "encoder",
    "parameters",
    "FLOP/image",
    "steps",
    "images",
    "held out",
    "classes",
    "memory/process",
    "GPU-hours",
)
SOURCE = "semaim.checkpoints.encoder_source.EncoderSource"


@dataclass(frozen=True)
class Estimate:
    """What a run costs; None where it cannot be known.

    Attributes:
        encoder_parameters, parameters: of the encoder, and of the whole network.
        flops: floating-point operations per image: of a training step, or of a pass where the encoder learns nothing.
        images: that take this, in all.
        steps: of training, to the end.
        memory: bytes on each process while the network is trained.
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
    """An encoder on the meta device: what kind it is and whether it fits is known, its values are not.

    It stands where `EncoderSource` stands in an evaluation's configuration.
    """

    def encoder(self) -> VisionTransformer:
        return _valueless(super().encoder)

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        return _valueless(lambda: super(EncoderShape, self).classifier(num_classes, pool, drop_path))

    def trained_classifier(self, num_classes: int) -> VisionTransformer:
        return _valueless(lambda: super(EncoderShape, self).trained_classifier(num_classes))

    def _read(self, path: Path) -> dict[str, Any]:
        return read_shapes(path)

    def _from_timm(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        name = self.checkpoint.removeprefix(TIMM)
        try:
            vit = timm.create_model(name, pretrained=False, num_classes=num_classes)  # the weights are not fetched
        except Exception as error:  # what an absent name or file raises differs
            raise UserError(
                f"checkpoint={self.checkpoint}: timm has no such model ({error}): see timm.list_models(pretrained=True)"
            ) from error
        if not is_vision_transformer(vit):
            raise UserError(f"checkpoint={self.checkpoint} is not a vision transformer, which semaim evaluates")
        vit.architecture = {"classifier": {"sizes": {"timm": name}}}
        return vit


def _valueless(build: Callable[[], VisionTransformer]) -> VisionTransformer:
    with torch.device("meta"):
        vit = build()
    vit.state_dict = dict  # there are no values, of which tasks would take a checksum
    return vit


def read_shapes(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, read and verified as for use, with tensors on the meta device.

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


def opened(cfg: DictConfig) -> ImageData:
    """Data, of which one image of each part has been read; raises UserError if that cannot be."""
    data: ImageData = instantiate(cfg, _convert_="all")
    for images in (data.splits.train, data.splits.val):
        if images is not None:
            data.eval_transform(first_image(images, data.max_unreadable))
    return data


def first_image(images: ImageSet, max_unreadable: int) -> Image.Image:
    """The first image that can be read; raises UserError if too many before it cannot."""
    for index in range(len(images)):
        try:
            return images.read(index)
        except UNREADABLE as error:
            if index >= max_unreadable or index + 1 == len(images):
                raise UserError(f"{images.name(index)} cannot be read ({error}): repair or remove it") from error
    raise UserError("these data hold no image: see data.root")


def build_task(cfg: DictConfig, data: ImageData) -> Any:
    """The task of a configuration with its networks on the meta device.

    Args:
        cfg: a composed configuration.
        data: what its `data` makes, which may serve many tasks.

    Raises:
        UserError: for what the task finds wrong.
        hydra.errors.HydraException: for options that do not fit.
    """
    given: dict[str, Any] = {"data": data} if "data" in cfg.task else {}
    if cfg.task.get("source") is not None and cfg.task.source._target_ == SOURCE:
        cfg = cfg.copy()
        cfg.task.source._target_ = f"{__name__}.{EncoderShape.__name__}"
    if cfg.task.get("model") is None:
        return instantiate(cfg.task, **given, _convert_="all")
    make = partial(_on_meta, instantiate(cfg.task.model, _convert_="all"))
    task = instantiate(cfg.task, **given, model=make, checkpoint=None, _convert_="all")
    if (start := cfg.task.get("checkpoint")) is not None:
        model = _on_meta(model_of, read_shapes(Path(start)), Path(start), None, False)
        load_weights(task.model, model.state_dict(), Path(start))
    return task


def _on_meta(build: Callable[..., AIM], *args: Any, **kwargs: Any) -> AIM:
    with torch.device("meta"):
        return build(*args, **kwargs)


def estimate(task: Any, seed: int, processes: int, on_gpu: bool) -> Estimate | None:
    """What a run of a task costs; None for a task of a kind that is not known here.

    Images that accuracy is measured on while training are not counted.

    Args:
        task: made by `build_task`.
        seed: of the run.
        processes: how many compute it.
        on_gpu: whether they do so on GPUs, where trainer.precision=auto means bf16.

    Raises:
        UserError: if batch, data and processes do not go together, or the optimizer's options are wrong.
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
        learned = 0 if finetunes else len(splits.labelled or splits.train)
        return Estimate(*sizes, spent.encode, learned + (0 if splits.val is None else len(splits.val)))
    trainer: TrainerSettings = task.trainer
    plan = loop.step_plan(task, trainer, seed, Processes(0, processes, torch.device("cpu")))
    steps, kept = trainer.last_step(plan.steps_per_epoch), moments(task.optimizer, task.model)
    flops = spent.encode if isinstance(task, LinearProbe) else spent.training_step
    memory = None
    if isinstance(getattr(task.model, "blocks", [None])[0], Block | ViTBlock):
        number = PRECISIONS.get(trainer.precision, torch.bfloat16 if on_gpu else torch.float32).itemsize
        memory = training_memory(task.model, plan.micro_batch_size, number, kept, trainer.ema)
        if (teacher := getattr(task, "teacher", None)) is not None:
            memory += FLOAT32 * teacher.parameters
    files = trainer.keep_checkpoints + 1  # a new one is there before the oldest goes
    if trainer.milestone_every_epochs is not None:
        files += steps // (plan.steps_per_epoch * trainer.milestone_every_epochs)
    size = sum(p.numel() for p in task.model.parameters()) * FLOAT32 * (1 + kept + trainer.ema)
    return Estimate(*sizes, flops, steps * trainer.batch_size, steps, memory, size * min(files, steps))


@dataclass
class CheckRow:
    """A run of the table; None where something is not known.

    Attributes:
        name: of its run folder.
        state: how far it is.
        done: steps that it has behind it.
        finished: whether nothing is left to do.
        cost, data: what it takes, and what it sees.
    """

    name: str
    state: str = "-"
    done: int = 0
    finished: bool = False
    cost: Estimate | None = None
    data: ImageData | None = None

    def gpu_hours(self, tflops: float) -> float:
        """Of what is left to do, on GPUs of so many TFLOP/s."""
        if self.cost is None or self.finished:
            return 0.0
        left = 1 - min(1.0, self.done / self.cost.steps) if self.cost.steps else 1.0
        return left * self.cost.flops * self.cost.images / (tflops * 1e12) / 3600

    def cells(self, tflops: float) -> list[str]:
        """What stands in the columns of the table."""
        cells, cost = ["-"] * (len(COLUMNS) - 1), self.cost
        if cost is not None:
            cells[:3] = [count(number) for number in (cost.encoder_parameters, cost.parameters, cost.flops)]
            cells[3] = "-" if cost.steps is None else str(cost.steps)
            cells[7] = "-" if cost.memory is None else count(cost.memory, "B")
            cells[8] = hours(self.gpu_hours(tflops))
        if self.data is not None:
            splits = self.data.splits
            cells[4:7] = [str(len(part)) if part else "-" for part in (splits.train, splits.val, splits.classes)]
        return [self.name, *cells, self.state]


@dataclass
class CheckReport:
    """What was found.

    Attributes:
        problems: what would go wrong, a line each: the option, and what to do.
        notes: what a person should know, likewise.
        rows: each run, and each evaluation after it.
        runs: how many there are without these evaluations.
        processes: how many compute each.
        tflops: TFLOP/s that a GPU is taken to sustain.
    """

    problems: list[str]
    notes: list[str]
    rows: list[CheckRow]
    runs: int
    processes: int
    tflops: float

    @property
    def table(self) -> str:
        """The runs, aligned in columns: parameters, images to learn from, and an upper estimate of memory."""
        columns = list(zip([*COLUMNS, "state"], *(row.cells(self.tflops) for row in self.rows), strict=True))
        widths = [max(map(len, column)) for column in columns]
        aligned = [[cell.rjust(width) for cell in column] for column, width in zip(columns, widths, strict=True)]
        for place in (0, -1):
            aligned[place] = [cell.ljust(widths[place]) for cell in columns[place]]
        return "\n".join("  ".join(line).rstrip() for line in zip(*aligned, strict=True))

    def __str__(self) -> str:
        spent, after = hours(sum(row.gpu_hours(self.tflops) for row in self.rows)), len(self.rows) - self.runs
        what = plural(self.runs, "run") + (f" and {plural(after, 'evaluation')} after" if after else "")
        what += f", {plural(self.processes, 'process', 'es')} each, about {spent} GPU-hours"
        found = plural(len(self.problems), "problem") if self.problems else "OK"
        lines = [*(f"note: {note}" for note in self.notes), *(f"problem: {problem}" for problem in self.problems)]
        return "\n".join([self.table, "", *lines, f"{found}: {what}"])


def hours(number: float) -> str:
    """Hours for people: 0.0, 3.2, 410."""
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"
