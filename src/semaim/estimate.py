"""What runs need, told from their configuration alone, and whether it is there: on a SLURM cluster, a disk, a server.

Models are built on torch's meta device, where tensors have shapes and no values. So ViT-H takes milliseconds and no
memory.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
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

from semaim import checkpoint, engine
from semaim.data import ImageData
from semaim.data.loading import UNREADABLE
from semaim.data.sources import ImageSet
from semaim.delivery import SQLITE
from semaim.distributed import Processes
from semaim.encoders import RANDOM, TIMM, EncoderSource
from semaim.errors import UserError
from semaim.interop import load_weights, model_of, read_checkpoint
from semaim.models.aim import AIM
from semaim.models.cost import FLOAT32, cost, encoder_cost, moments, training_memory
from semaim.models.layers import Block
from semaim.models.vit import Pool
from semaim.progress import count
from semaim.sweeps.slurm import answer
from semaim.tasks.finetune import FineTuning
from semaim.tasks.linprobe import LinearProbe
from semaim.tasks.pretrain import Pretraining
from semaim.trainer import PRECISIONS, Trainer

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
SOURCE = "semaim.encoders.EncoderSource"


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

    @cached_property
    def _state(self) -> dict[str, Any] | None:
        return None if self.checkpoint == RANDOM or self.checkpoint.startswith(TIMM) else read_shapes(self._path)

    def _from_timm(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        name = self.checkpoint.removeprefix(TIMM)
        try:
            vit = timm.create_model(name, pretrained=False, num_classes=num_classes)  # the weights are not fetched
        except Exception as error:  # what an absent name or file raises differs
            raise UserError(
                f"checkpoint={self.checkpoint}: timm has no such model ({error}): see timm.list_models(pretrained=True)"
            ) from error
        if not hasattr(vit, "num_prefix_tokens") or not hasattr(vit, "blocks"):
            raise UserError(f"checkpoint={self.checkpoint} is not a vision transformer, which semaim evaluates")
        vit.architecture = name
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
    return _read_shapes(path, checkpoint.fingerprint(path))


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
    for images in (data.source.train, data.source.val):
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
        spent = cost(task.model, task.permutation.needs_map or task.online_linear is not None)
    elif (vit := task.model if finetunes else getattr(task, "vit", None)) is not None:
        spent = encoder_cost(vit)
    else:
        return None
    sizes = spent.encoder_parameters, spent.parameters
    if not isinstance(task, Pretraining | LinearProbe) and not (finetunes and not task.eval_only):
        splits = task.data.source  # one pass over the images
        learned = 0 if finetunes else len(splits.labelled or splits.train)
        return Estimate(*sizes, spent.encode, learned + (0 if splits.val is None else len(splits.val)))
    trainer: Trainer = task.trainer
    plan = engine.step_plan(task, trainer, seed, Processes(0, processes, torch.device("cpu")))
    steps, kept = trainer.last_step(plan.steps_per_epoch), moments(task.optimizer, task.model)
    flops = spent.encode if isinstance(task, LinearProbe) else spent.training_step
    memory = None
    if isinstance(getattr(task.model, "blocks", [None])[0], Block | ViTBlock):
        number = PRECISIONS.get(trainer.precision, torch.bfloat16 if on_gpu else torch.float32).itemsize
        memory = training_memory(task.model, plan.micro_batch_size, number, kept, trainer.ema)
    files = trainer.keep_checkpoints + 1  # a new one is there before the oldest goes
    if trainer.milestone_every_epochs is not None:
        files += steps // (plan.steps_per_epoch * trainer.milestone_every_epochs)
    size = sum(p.numel() for p in task.model.parameters()) * FLOAT32 * (1 + kept + trainer.ema)
    return Estimate(*sizes, flops, steps * trainer.batch_size, steps, memory, size * min(files, steps))


@dataclass
class Row:
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
            splits = self.data.source
            cells[4:7] = [str(len(part)) if part else "-" for part in (splits.train, splits.val, splits.classes)]
        return [self.name, *cells, self.state]


@dataclass
class Checked:
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
    rows: list[Row]
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


def plural(number: int, noun: str, ending: str = "s") -> str:
    """A number of things: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else ending}"


def hours(number: float) -> str:
    """Hours for people: 0.0, 3.2, 410."""
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


SINFO = ("sinfo", "--noheader", "--Node", "--format=%P|%N|%G|%c|%m|%l|%T")
ANSWER_SECONDS = 5  # that a tracking server is given
OUT_OF_SERVICE = re.compile(r"down|drain|drng|fail|error|unknown|inval|future|\*")  # a star: it does not respond


@dataclass(frozen=True)
class Asked:
    """What a launcher asks for: nodes; on each of them processes, GPUs, CPUs and MB; minutes at most; its options."""

    nodes: int
    tasks: int
    gpus: int
    cpus: int
    memory: int
    minutes: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, launcher: Mapping[str, Any]) -> Asked:
        """Read a launcher's options; one without any of these computes in a single process."""
        number = {key: value for key, value in launcher.items() if isinstance(value, int)}
        tasks = number.get("tasks_per_node", 1)
        gpus = number.get("gpus_per_node") or number.get("gpus_per_task", 0) * tasks
        gpus = gpus or gpus_in(launcher.get("gres") or "")
        cpus = max(number.get("cpus_per_task", 1) * tasks, number.get("cpus_per_gpu", 0) * gpus)
        memory = round(1024 * (launcher.get("mem_gb") or 0))
        return cls(number.get("nodes", 1), tasks, gpus, cpus, memory, number.get("timeout_min", 0), launcher)

    @property
    def processes(self) -> int:
        """How many compute a run."""
        return self.nodes * self.tasks

    @property
    def slurm(self) -> bool:
        """Whether SLURM is asked."""
        return "partition" in self.options


@dataclass(frozen=True)
class Node:
    """A node in a partition: GPUs, CPUs, MB; the partition's minutes (None: no limit); whether it is in service."""

    partition: str
    usual: bool  # the default partition
    gpus: int
    cpus: int
    memory: int
    minutes: int | None
    up: bool


def nodes_of(sinfo: str) -> list[Node]:
    """The nodes in the output of `SINFO`; one that is in several partitions stands there several times."""
    nodes = []
    for line in sinfo.splitlines():
        partition, _, gres, cpus, memory, limit, state = line.split("|")
        sizes = gpus_in(gres), int(cpus.rstrip("+")), int(memory.rstrip("+"))
        up = OUT_OF_SERVICE.search(state.lower()) is None
        nodes.append(Node(partition.rstrip("*"), partition.endswith("*"), *sizes, minutes_in(limit), up))
    return nodes


def gpus_in(gres: str) -> int:
    """How many GPUs there are in generic resources: 6 in "gpu:a100:4(S:0-1),gpu:v100:2,nvme:1"."""
    kinds = (kind for kind in re.sub(r"\([^)]*\)", "", gres).split(",") if kind.split(":")[0] == "gpu")
    return sum(int(number) if (number := kind.split(":")[-1]).isdigit() else 1 for kind in kinds)


def minutes_in(limit: str) -> int | None:
    """Minutes of a SLURM time limit such as 30:00, 8:00:00 or 2-12:00:00; None for "infinite"."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):\d+", limit)):
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def slurm_problems(asked: Asked) -> list[str]:
    """What SLURM would never grant; nothing if the launcher does not ask SLURM."""
    if not asked.slurm:
        return []
    if shutil.which(SINFO[0]) is None:
        return ["the launcher submits to SLURM, but there is no SLURM here (no sinfo): do this on a login node"]
    if (text := answer(*SINFO)) is None:
        return ["the launcher submits to SLURM, but SLURM does not answer: see what sinfo says"]
    return not_granted(asked, nodes_of(text))


def not_granted(asked: Asked, nodes: Sequence[Node]) -> list[str]:
    """What a launcher asks for and nodes do not have; features, accounts and who uses the nodes are not looked at."""
    known = ", ".join(sorted({node.partition for node in nodes}))
    wanted = (asked.options["partition"] or "").split(",")
    if len(wanted) > 1:  # a job runs in one of them
        options = [{**asked.options, "partition": name} for name in wanted]
        return min((not_granted(replace(asked, options=each), nodes) for each in options), key=len)
    mine = [node for node in nodes if (node.partition == wanted[0] if wanted[0] else node.usual)]
    if not mine and wanted[0]:
        return [f"hydra.launcher.partition={wanted[0]}: there is no such partition; choose from {known}"]
    if not mine:
        return [f"hydra.launcher.partition must be given, since none is the default; choose from {known}"]
    where, limit, problems = f"partition {mine[0].partition}", mine[0].minutes, []
    if limit is not None and asked.minutes > limit:
        problems.append(f"hydra.launcher.timeout_min={asked.minutes}: {where} allows {limit} minutes, lower it")
    left = [node for node in mine if node.up]
    if len(left) < asked.nodes:
        down = f" ({len(mine) - len(left)} more are out of service)" if len(left) < len(mine) else ""
        problems.append(f"hydra.launcher.nodes={asked.nodes}: {where} has {len(left)}{down}, ask for fewer")
        return problems
    told = asked.options
    gpus = next((key for key in ("gpus_per_node", "gpus_per_task", "gres") if told.get(key)), "gpus_per_node")
    cpus = f"cpus_per_task={told.get('cpus_per_task') or 1} x tasks_per_node={asked.tasks}"
    for option, size, unit in (
        (f"{gpus}={told.get(gpus)}", "gpus", "GPUs"),
        (cpus, "cpus", "CPUs"),
        (f"mem_gb={told.get('mem_gb')}", "memory", "MB"),
    ):
        need = getattr(asked, size)
        if len(enough := [node for node in left if getattr(node, size) >= need]) >= asked.nodes:
            left = enough
            continue
        most = max(getattr(node, size) for node in left)
        there = f"{where} has {plural(len(enough), 'node')} with {need} {unit} (at most {most})"
        problems.append(f"hydra.launcher.{option}: {there}, {asked.nodes} must have them")
    return problems


def unreachable(uri: str) -> str | None:
    """What keeps a tracking store from taking metrics; None if nothing does, or it is of a kind not known here."""
    if uri.startswith(SQLITE) and not writable(Path(uri.removeprefix(SQLITE))):
        return "this file cannot be written; choose another"
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            return f"the server answers {error.code} {error.reason}; mend it" if error.code >= 500 else None
        except (OSError, ValueError) as error:
            return f"no server answers ({getattr(error, 'reason', error)}); start it"
    return None


def existing(path: Path) -> Path:
    """What is there of a path."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def writable(path: Path) -> bool:
    """Whether a file or folder can be written, or made if it is not there."""
    there = existing(path)
    return os.access(there, os.W_OK) and (there == path.absolute() or there.is_dir())
