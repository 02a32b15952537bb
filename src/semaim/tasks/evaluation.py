"""Base classes of the tasks that evaluate an encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints.encoder_source import EncoderSource, fingerprint
from semaim.checkpoints.origin import Origin
from semaim.config.run_spec import RunSpec
from semaim.config.source_run import run_folder_of
from semaim.core.files import if_possible
from semaim.core.image_size import pair
from semaim.core.locks import one_at_a_time
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.data.pixels import Transform
from semaim.errors import NeedsOptions, UserError
from semaim.evaluation.evaluator import evaluation_is_due
from semaim.evaluation.feature_cache import cached_features
from semaim.evaluation.features import Extraction, Features
from semaim.models.flops import encoder_cost
from semaim.models.vit import encode
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Evaluated, Journal
from semaim.tasks.task import RunCost, Task
from semaim.tracking.datasets import Context, use
from semaim.tracking.delivery import deliver
from semaim.training.optimizers import Optimization
from semaim.training.settings import TrainerSettings
from semaim.training.step import TrainingTask

log = logging.getLogger(__name__)
HIGHLIGHTS = {
    "eval/...": "accuracies in percent on held-out images, at the last step of the encoder's pretraining; `_top5` is "
    "top-5 accuracy, `_loss` cross-entropy without label smoothing",
    "tags pretrained.... and metrics pretrained/...": "which encoder it is, and what its pretraining cost",
    "artifacts": "`per_class.csv` and `confusion.csv` (not of few-shot evaluations)",
}


def check_image_size(vit: VisionTransformer, data: ImageData, checkpoint: str) -> None:
    """Raise UserError if the encoder's image size differs from that of the data."""
    own = pair(vit.patch_embed.img_size)
    if own != data.image_size:
        size = own[0] if own[0] == own[1] else f"[{own[0]},{own[1]}]"
        raise NeedsOptions(
            f"checkpoint={checkpoint} is for images of {own[0]}x{own[1]}, the data are of "
            f"{data.image_size[0]}x{data.image_size[1]}. Choose the data it was made with (data=folder "
            f"data.root=<folder>), resample its positions with task.source.interpolate=true, or resize these data",
            f"data.image_size={size}",
            f"data.patch_size={pair(vit.patch_embed.patch_size)[0]}",
        )


@dataclass(eq=False)
class Evaluation(Task):
    """Base of the tasks that evaluate an encoder.

    Args:
        source: the encoder.
        data: labelled images, some of them held out.
    """

    highlights = HIGHLIGHTS

    source: EncoderSource
    data: ImageData

    def __post_init__(self) -> None:
        self.labelled, self.held_out = self.data.labelled_and_held_out()
        self.classes = self.data.splits.classes

    def begin(self, run: Run) -> Origin:
        """Log the origin of the encoder in the run."""
        origin = self.source.origin(run.seed, run.choices)
        run.tag(origin.tags)
        run.log(origin.step, origin.metrics)
        if origin.data is not None and split_differs(origin.data, run.config["data"]):
            log.warning(
                "these data were split differently when the encoder was pretrained on them: images held out now may "
                "have been seen (without labels) then. Set data.val_fraction, data.val_seed and data.source as they "
                "were"
            )
        return origin

    def end(self, run: Run, origin: Origin, result: Mapping[str, float]) -> dict[str, float]:
        """Log the result at the step of the encoder's pretraining, in this run and in its parent run."""
        metrics = {f"eval/{name}": value for name, value in result.items()}
        run.log(origin.step, metrics, self._measured(run))
        if run.processes.is_main and (parent := run.config.get("parent_run")) is not None:
            with if_possible():  # it may be of another user
                log_to_pretraining(RunFolder(Path(parent)), origin.step, metrics)
        return dict(result)

    def image_sets(self) -> dict[Context, tuple[ImageSet, int]]:
        """The labelled images, and the held-out ones."""
        return {"training": (self.labelled, len(self.classes)), "evaluation": (self.held_out, len(self.classes))}

    def _measured(self, run: Run) -> Evaluated | None:
        """The run of the encoder and the held-out images, for MLflow; None if the encoder is of no run."""
        path = self.source.path
        if not run.processes.is_main or path is None or (folder := run_folder_of(path.absolute())) is None:
            return None
        used = use(self.held_out, len(self.classes), "evaluation", run.choices["data"], run.config["data"])
        return {"run_folder": str(folder), "name": used["name"], "digest": used["digest"]}

    def next_commands(self, folder: Path, spec: RunSpec) -> dict[str, str]:
        """Commands that the user may run next."""
        command = self.source.tracking.report_command()
        return {"compare": command} if command else {}


@dataclass(eq=False)
class FeatureEvaluation(Evaluation):
    """Base of the evaluations that compute an encoder's features once and use only these.

    Args:
        source: the encoder.
        data: labelled images, some of them held out.
        batch_size: images per batch on each process.
        features_dir: folder of the feature cache, which later evaluations reuse; null to keep features in memory only.

    Attributes:
        mean_before_norm: also compute the feature of this name, see `semaim.models.vit.encode`.
    """

    batch_size: int
    features_dir: str | None
    mean_before_norm: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vit = self.source.encoder()
        check_image_size(self.vit, self.data, self.source.checkpoint)
        self.weights = fingerprint(self.vit)

    def cost(self, processes: int, on_gpu: bool) -> RunCost:
        """A pass of the encoder over all images."""
        return encoding_cost(self.vit, self.labelled, self.held_out)

    def features(self, images: ImageSet, indices: Sequence[int], run: Run, title: str) -> Features:
        """Features of some images, from the cache if they were computed before."""
        self.vit.to(run.processes.device)

        def encoder(images_BCHW: Tensor) -> dict[str, Tensor]:
            return encode(self.vit, images_BCHW, self.mean_before_norm)

        request = Extraction(encoder, self.data, images, indices, self.batch_size, title)
        cache = None if self.features_dir is None else Path(self.features_dir)
        computed = self.weights + (" mean_before_norm" if self.mean_before_norm else "")
        return cached_features(cache, computed, request, run)


@dataclass(eq=False)
class TrainedEvaluation(Evaluation, TrainingTask):
    """Base of the evaluations that train a classifier with the training loop.

    Args:
        source: the encoder.
        data: labelled images, some of them held out.
        train_transform: augmentation of the training images.
        optimizer: optimizer and learning rates.
        trainer: settings of the loop.
        recipe: name of the recipe that optimizer, trainer and augmentation are from, for the log.
        batch_size: images per batch on each process when accuracy is measured.
        evaluate_every_epochs: epochs between evaluations during training; null for the last only.

    Attributes:
        weights: fingerprint of the encoder at the start.
    """

    train_transform: Transform
    optimizer: Optimization
    trainer: TrainerSettings
    recipe: str
    batch_size: int
    evaluate_every_epochs: int | None
    weights: str = field(init=False, repr=False)

    def begin(self, run: Run) -> Origin:
        """As of `Evaluation`; the origin is stored in checkpoints."""
        self.origin = super().begin(run)
        return self.origin

    def is_due(self, epoch: int, last: bool) -> bool:
        """Whether to evaluate after an epoch (0: before training)."""
        return evaluation_is_due(self.evaluate_every_epochs, epoch, last)

    def state_dict(self) -> dict[str, Any]:
        """Origin and identity of the encoder."""
        return {"origin": asdict(self.origin) | {"data": None}, "encoder": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise UserError if the stored evaluation was started with another encoder."""
        if state["encoder"] != self.weights:
            raise UserError(
                f"checkpoint={self.source.checkpoint} has changed since this run began, so it cannot continue: give "
                f"this run another name with run_name=..."
            )


def encoding_cost(vit: VisionTransformer, *image_sets: ImageSet) -> RunCost:
    """Cost of a pass of an encoder over all images of these sets."""
    spent = encoder_cost(vit)
    return RunCost(spent.encoder_parameters, spent.parameters, spent.encode, sum(map(len, image_sets)))


def log_to_pretraining(folder: RunFolder, step: int, metrics: Mapping[str, float]) -> None:
    """Log accuracies of an encoder to the run that pretrained it, so that pretrainings can be compared by them.

    Does nothing if the folder is a sweep's, or its run is not finished or is locked.
    """
    if folder.state() != "finished" or folder.is_locked():
        return
    with one_at_a_time(folder.path / ".journal.lock", "writing of a result"):  # evaluations that end together
        journal = Journal(folder.journal)
        journal.log(step, metrics)
        journal.close()
    deliver(folder)


def split_differs(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two configurations hold out different images of the same data."""
    roots = [Path(each["root"] or "").expanduser().resolve() for each in (before, now)]
    same_data = roots[0] == roots[1] and before["source"]["_target_"] == now["source"]["_target_"]
    splits = [
        (each["source"].get("val_fraction"), each["val_fraction"] and (each["val_fraction"], each["val_seed"]))
        for each in (before, now)
    ]
    return same_data and splits[0] != splits[1]
