"""Pictures of orders, maps and reconstructions of images, for one checkpoint or several.

Shapes: B images, L patches.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semaim.checkpoints.encoder_source import MLFLOW, Tracking
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.checkpoints.two_stream import model_of, read_checkpoint
from semaim.config.run_spec import RunSpec
from semaim.core.distributed import Processes
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.data.object_patches import object_patches
from semaim.data.samples import read_images, sample_indices
from semaim.data.sources import image_files
from semaim.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform, evaluation
from semaim.errors import UserError
from semaim.evaluation.order_metrics import means, order_metrics
from semaim.models.aim import AIM
from semaim.permutations import Permutation
from semaim.runs.context import Run
from semaim.semantics import SemanticMap
from semaim.targets import Target
from semaim.tasks.task import Task
from semaim.teachers import Teacher
from semaim.visualization import figures, plotting
from semaim.visualization.figures import ModelView
from semaim.visualization.views import Colours, Prediction, Viewer

log = logging.getLogger(__name__)
HIGHLIGHTS = {"artifacts, pictures": "orders and maps, predictions, and film strips"}
IMAGES_PER_PAGE = 16
DEFAULT_ORDERS = ("raster", "stochastic", "attention", "attention_center")  # as in the paper's figure


@dataclass
class ShownModel:
    """A model to draw.

    Attributes:
        name: as a heading.
        model: in eval mode.
        average: its moving average, if a target needs it.
        transform: transform of its images.
        colours: colour normalisation of its images.
        order, target: names of its training order and target; None if unknown.
    """

    name: str
    model: AIM
    average: AIM | None
    transform: Transform
    colours: Colours
    order: str | None
    target: str | None


@dataclass(eq=False)
class Visualize(Task):
    """The task.

    Args:
        checkpoint: a run folder or file, or several.
        tracking: looks up mlflow:<run id>.
        images: a folder of images or files of images; null for held-out images of the data.
        data: images; their transform is taken from the checkpoint.
        count: number of images, the same random ones every time.
        permutations: the available orders, by name.
        orders: names of the orders to draw; null for DEFAULT_ORDERS or, with several checkpoints, for each model's
            training order.
        predict_order: the order to predict in; null for the model's training order.
        semantic_map: kind of the semantic map; its tokens are the model's own.
        target: target of the models.
        palette: colour map of maps and orders, by matplotlib's name.
        formats: "png", "svg" or both.

    Raises:
        UserError: for invalid options, or a checkpoint that cannot be drawn.
    """

    metric = "images"
    highlights = HIGHLIGHTS

    checkpoint: str | Sequence[str] | None
    tracking: Tracking
    images: str | Sequence[str] | None
    data: ImageData
    count: int
    permutations: Mapping[str, Permutation]
    orders: Sequence[str] | None
    predict_order: str | None
    semantic_map: SemanticMap
    target: Target
    palette: str
    formats: Sequence[str]

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("task=visualize needs a checkpoint: checkpoint=runs/<name>, or several: checkpoint=[a,b]")
        if self.count < 1:
            raise UserError(f"task.count={self.count} must be positive")
        known = ", ".join(self.permutations)
        named = {"orders": self.orders or [], "predict_order": [self.predict_order] if self.predict_order else []}
        for option, requested in named.items():
            if unknown := [name for name in requested if name not in self.permutations]:
                raise UserError(f"task.{option}: there is no order {unknown[0]}; choose from {known}")
        if not self.formats or set(self.formats) - {"png", "svg"}:
            raise UserError(f"task.formats={list(self.formats)} is unknown: choose png, svg or both")
        plotting.check_palette(self.palette, "task.palette")
        names = [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint
        self.image_set: ImageSet = self.data.splits.val or self.data.splits.train
        if self.images is not None:
            self.image_set = image_files([self.images] if isinstance(self.images, str) else self.images)
        self.indices = sample_indices(len(self.image_set), self.count)
        ema = self.target.network_name == "ema"
        self.shown = [load(*each, self.tracking, ema) for each in zip(names, short_names(names), strict=True)]
        self.orders = self.orders or (DEFAULT_ORDERS if len(names) == 1 else None)

    def load(self, processes: Processes) -> None:
        """Load the teacher, if there is one."""
        if isinstance(self.target, Teacher):
            self.target.load()
            self.target.to(processes.device)

    def run(self, run: Run) -> dict[str, float]:
        """Draw; returns the number of images and the order metrics (means over these images)."""
        quality: dict[str, list[Tensor]] = defaultdict(list)
        if run.processes.is_main:
            for number, start in enumerate(range(0, len(self.indices), IMAGES_PER_PAGE), start=1):
                page = f"_page{number}" if len(self.indices) > IMAGES_PER_PAGE else ""
                for name, value_B in self._draw(self.indices[start : start + IMAGES_PER_PAGE], page, run).items():
                    quality[name].append(value_B)
        metrics = means({name: torch.cat(parts) for name, parts in quality.items()})
        run.log(0, metrics)
        return {"images": len(self.indices), **metrics}

    def next_commands(self, folder: Path, spec: RunSpec) -> dict[str, str]:
        """Folder of the pictures."""
        return {"pictures": str(folder / "pictures")}

    def _draw(self, indices: Sequence[int], page: str, run: Run) -> dict[str, Tensor]:
        """Draw one page, whose files end in `page`; returns the order metrics, (B,) each, by name."""
        views: list[ModelView] = []
        quality: dict[str, Tensor] = {}
        images_BHWC = None
        for index, each in enumerate(self.shown, start=1):
            readable, images_BCHW = read_images(self.image_set, indices, each.transform)
            images_BCHW = images_BCHW.to(run.processes.device)
            each.model.to(run.processes.device)
            view, prediction = self._view(each, images_BCHW, run)
            views.append(view)
            object_BL = object_patches(self.image_set, readable, each.transform, each.model.patch_size)
            prefix = f"{each.name}/" if len(self.shown) > 1 else ""
            quality |= {f"{prefix}{name}": value_B for name, value_B in order_quality(view, object_BL).items()}
            if images_BHWC is None:
                images_BHWC = each.colours.denormalise(images_BCHW)
            if prediction is not None:
                suffix = f"_{index}{page}" if len(self.shown) > 1 else page
                self._draw_prediction(each, images_BCHW, prediction, suffix, run)
        assert images_BHWC is not None
        self._save(figures.orders_figure(images_BHWC, views, self.palette), f"orders{page}", run)
        return quality

    def _view(self, shown: ShownModel, images_BCHW: Tensor, run: Run) -> tuple[ModelView, Prediction | None]:
        """Maps, orders and (if the model was trained with this target) predictions for some images."""
        model, colours = shown.model, shown.colours
        target = self.target.fitted(model, colours.mean, colours.std)
        encoders: dict[str, Any] = {"online": model, "ema": shown.average, "teacher": target}
        available = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        viewer = Viewer(model, available, "online", self.semantic_map, self.permutations, target)
        training_order = shown.order if shown.order and shown.order in self.permutations else "attention_center"
        same_target = shown.target in (None, run.choices["target"])
        predicts = same_target and model.architecture["out_channels"] == target.channels
        if not predicts:
            other = shown.target or "something else"
            log.info("%s predicts target=%s: set it to draw predictions", shown.name, other)
        view = viewer.view(images_BCHW, run.seed, (self.predict_order or training_order) if predicts else None)
        drawn = {name: view.orders[name] for name in self.orders or [training_order]}
        return ModelView(shown.name, view.maps, drawn, model.grid), view.prediction

    def _draw_prediction(
        self, shown: ShownModel, images_BCHW: Tensor, prediction: Prediction, suffix: str, run: Run
    ) -> None:
        colours, grid, patch_size = shown.colours, shown.model.grid, shown.model.patch_size
        images_BHWC = colours.denormalise(images_BCHW)
        figure = figures.reconstruction_figure(images_BHWC, prediction, grid, colours, self.palette)
        self._save(figure, f"reconstruction{suffix}", run)
        first = slice(0, 4)  # film strips are long
        first_prediction = prediction.subset(first)
        strip = figures.film_figure(images_BCHW[first], first_prediction, patch_size, colours, self.palette)
        self._save(strip, f"film{suffix}", run)
        file = run.folder.path / "pictures" / f"film{suffix}.gif"
        plotting.animation(figures.film_frames(images_BCHW[first], first_prediction, patch_size, colours), file)
        run.artifact(f"pictures/{file.name}")

    def _save(self, figure: Any, name: str, run: Run) -> None:
        for file in plotting.save_figure(figure, run.folder.path / "pictures" / name, self.formats):
            log.info("%s", file)
            run.artifact(f"pictures/{file.name}")


def order_quality(view: ModelView, object_BL: Tensor) -> dict[str, Tensor]:
    """Metrics of a model's orders, (B,) each; metrics that depend on the order have its name as a suffix."""
    metrics: dict[str, Tensor] = {}
    for order, order_BL in view.orders.items():
        quality = order_metrics(view.grid, order_BL.cpu(), view.maps.semantic_BL.cpu(), object_BL)
        first_B = quality.pop("object_in_first_quarter")
        metrics |= quality | {f"object_in_first_quarter/{order}": first_B}
    return metrics


def short_names(names: Sequence[str]) -> list[str]:
    """Short headings for checkpoints: the last parts of their paths, without their common first and last words."""
    words = [Path(name).name.split("_") for name in names]
    for end in (0, -1):
        while len(words) > 1 and all(len(each) > 1 for each in words) and len({each[end] for each in words}) == 1:
            words = [each[1:] if end == 0 else each[:-1] for each in words]
    return ["_".join(each) for each in words]


def load(name: str, heading: str, tracking: Tracking, ema: bool) -> ShownModel:
    """Load a model to draw, with the transform of its images.

    Raises:
        UserError: if the checkpoint has no model of semaim.
    """
    where = name.removeprefix(MLFLOW)
    path = tracking.run_folder(where) if where != name else Path(name).expanduser()
    state = read_checkpoint(path)
    stored = StoredEncoder(path, state, False, None, None)
    model = model_of(state, path, None, False).eval()
    mean, std = stored.normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    transform = evaluation(model.image_size, stored.crop_ratio or 0.875, mean, std)
    average = model_of(state, path, None, True).eval() if ema else None
    choices = state.get("choices", {})
    return ShownModel(
        heading, model, average, transform, Colours(mean, std), choices.get("permutation"), choices.get("target")
    )
