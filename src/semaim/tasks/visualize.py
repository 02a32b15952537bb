"""Pictures of orders, maps and reconstructions of images, for one checkpoint or several.

Shapes: B images, L patches.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semaim.checkpoints.encoder_source import Tracking
from semaim.config.compose import choices
from semaim.config.run_spec import RunSpec
from semaim.core.distributed import Processes
from semaim.core.files import write_text
from semaim.core.formatting import printable
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.data.object_patches import object_patches
from semaim.data.samples import read_images, sample_indices
from semaim.data.sources import image_files
from semaim.errors import NonFiniteError, UserError
from semaim.evaluation.order_metrics import means, order_metrics
from semaim.permutations import Permutation
from semaim.runs.context import Run
from semaim.semantics import SemanticMap
from semaim.targets import Target
from semaim.tasks.task import Task
from semaim.teachers import Teacher
from semaim.visualization import figures, plotting
from semaim.visualization.figures import ModelView, Shown
from semaim.visualization.trained_models import ShownModel, composed_orders, load, short_names
from semaim.visualization.views import PredictedImages, Viewer

log = logging.getLogger(__name__)
HIGHLIGHTS = {"artifacts, pictures": "orders and maps, predictions, and film strips"}
IMAGES_PER_PAGE = 16
NAMES = "images.csv"
DEFAULT_ORDERS = ("raster", "stochastic", "attention", "attention_center")  # as in the paper's figure


@dataclass(eq=False)
class Visualize(Task):
    """The task.

    Args:
        checkpoint: a run folder or file, or several.
        tracking: looks up mlflow:<run id>.
        images: a folder of images or files of images; null for held-out images of the data.
        data: images; their transform is taken from the checkpoint.
        count: number of images, the same random ones every time.
        orders: names of the orders to draw, choices of the group permutation or the order of a model's training; null
            for DEFAULT_ORDERS and the latter or, with several checkpoints, for the latter.
        predict_order: the order to predict in; null for the model's training order.
        semantic_map, target: in place of those of a model's training if the command names them, or if the checkpoint
            does not.
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
    orders: Sequence[str] | None
    predict_order: str | None
    semantic_map: SemanticMap
    target: Target
    palette: str
    formats: Sequence[str]
    permutations: dict[str, Permutation] = field(init=False, repr=False)
    drawn: dict[str, Sequence[str]] = field(init=False, repr=False, default_factory=dict)  # names, by page

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("task=visualize needs a checkpoint: checkpoint=runs/<name>, or several: checkpoint=[a,b]")
        plotting.check_palette(self.palette, "task.palette")
        names = [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint
        self.image_set: ImageSet = self.data.splits.val or self.data.splits.train
        kind = "training images" if self.data.splits.val is None else "held-out images"
        if self.images is not None:
            self.image_set = image_files([self.images] if isinstance(self.images, str) else self.images)
            kind = "images"
        self.indices = sample_indices(len(self.image_set), self.count)
        self.caption = f"{len(self.indices)} of {len(self.image_set)} {kind}"
        self.shown = [load(*each, self.tracking) for each in zip(names, short_names(names), strict=True)]

    def check(self, seed: int, processes: Processes) -> None:
        """Build the orders to draw; take the map and target of each model's training, unless the command names others.

        Raises:
            UserError: for an unknown order.
        """
        own = {each.order: each.permutation for each in self.shown if each.permutation is not None}
        known = dict.fromkeys([*choices("permutation", self.spec.all_folders), *own])
        asked = {"orders": self.orders or [], "predict_order": [self.predict_order] if self.predict_order else []}
        for option, requested in asked.items():
            if unknown := [name for name in requested if name not in known]:
                raise UserError(f"task.{option}: there is no order {unknown[0]}; choose from {', '.join(known)}")
        drawn = {*asked["orders"], *asked["predict_order"], *DEFAULT_ORDERS, *(each.order for each in self.shown)}
        self.permutations = composed_orders(sorted(drawn - own.keys()), self.spec.all_folders) | own
        named = {override.lstrip("+").split("=")[0].split(".")[0] for override in self.spec.overrides}
        for shown in self.shown:
            if "semantic_map" in named or shown.semantic_map is None:
                shown.semantic_map = self.semantic_map
            if "target" in named or shown.target is None:
                other = shown.target_name not in (None, self.spec.choices["target"])
                shown.target = None if other else self.target
                if other:
                    log.info("%s was trained with target=%s: no predictions are drawn", shown.name, shown.target_name)

    def load(self, processes: Processes) -> None:
        """Load the teachers, if there are any."""
        for shown in self.shown:
            if isinstance(teacher := shown.target, Teacher):
                try:
                    teacher.load()
                    teacher.to(processes.device)
                except UserError as error:
                    log.warning("%s: no predictions are drawn: %s", shown.name, error)
                    shown.target = None

    def run(self, run: Run) -> dict[str, float]:
        """Draw; returns the number of images and the order metrics (means over these images)."""
        quality: dict[str, list[Tensor]] = defaultdict(list)
        if run.processes.is_main:
            log.info("%s; pictures/%s names their files, from top to bottom", self.caption, NAMES)
            for number, start in enumerate(range(0, len(self.indices), IMAGES_PER_PAGE), start=1):
                page = f"_page{number}" if len(self.indices) > IMAGES_PER_PAGE else ""
                for name, value_B in self._draw(self.indices[start : start + IMAGES_PER_PAGE], page, run).items():
                    quality[name].append(value_B)
            self._write_names(run)
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
        first: Shown | None = None
        for index, each in enumerate(self.shown, start=1):
            readable, images_BCHW = read_images(self.image_set, indices, each.transform, self.data.unreadable)
            images_BCHW = images_BCHW.to(run.processes.device)
            each.model.to(run.processes.device)
            view, prediction = self._view(each, images_BCHW, run)
            views.append(view)
            object_BL = object_patches(self.image_set, readable, each.transform, each.model.patch_size)
            prefix = f"{each.name}/" if len(self.shown) > 1 else ""
            quality |= {f"{prefix}{name}": value_B for name, value_B in order_quality(view, object_BL).items()}
            names = [self.image_set.name(index) for index in readable]
            drawn = Shown(each.colours.denormalise(images_BCHW), names, self.caption)
            first = first or drawn
            if prediction is not None:
                suffix = f"_{index}{page}" if len(self.shown) > 1 else page
                self._draw_prediction(each, images_BCHW, drawn, prediction, suffix, run)
        assert first is not None
        self.drawn[page] = first.names
        self._save(figures.orders_figure(first, views, self.palette), f"orders{page}", run)
        return quality

    def _view(self, shown: ShownModel, images_BCHW: Tensor, run: Run) -> tuple[ModelView, PredictedImages | None]:
        """Maps, orders and (if the target is known) predictions for some images."""
        model, colours, maps = shown.model, shown.colours, shown.semantic_map
        assert maps is not None
        target = shown.target and shown.target.fitted(model, colours.mean, colours.std)
        teacher = target if isinstance(target, Teacher) else None
        encoders: dict[str, Any] = {"online": model, "ema": shown.average, "teacher": teacher}
        available = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        network = maps.network_beside(target.network_name if target else None)
        if network not in available:
            log.warning("%s: its map is of its own tokens, since those of its %s are not here", shown.name, network)
            network = "online"
        own = {} if shown.permutation is None else {shown.order: shown.permutation}
        viewer = Viewer(model, available, network, maps, self.permutations | own, target)
        if target is not None and model.architecture["out_channels"] != target.channels:
            target = None
        view = viewer.view(images_BCHW, run.seed, (self.predict_order or shown.order) if target else None)
        errors = [] if view.prediction is None else [view.prediction.error_BL]
        if not all(values.isfinite().all() for values in (view.maps.semantic_BL, *errors)):
            raise NonFiniteError(f"checkpoint={shown.name}: its map or its prediction is not finite")
        default = (*(DEFAULT_ORDERS if len(self.shown) == 1 else ()), shown.order)
        drawn = {name: view.orders[name] for name in self.orders or default}
        return ModelView(shown.name, view.maps, drawn, model.grid), view.prediction

    def _draw_prediction(
        self, shown: ShownModel, images_BCHW: Tensor, drawn: Shown, prediction: PredictedImages, suffix: str, run: Run
    ) -> None:
        colours, grid, patch_size = shown.colours, shown.model.grid, shown.model.patch_size
        figure = figures.reconstruction_figure(drawn, prediction, grid, colours, self.palette)
        self._save(figure, f"reconstruction{suffix}", run)
        if prediction.counted_BL is not None:
            return  # a film shows each patch predicted from those before it
        first = slice(0, 4)  # film strips are long
        first_prediction = prediction.subset(first)
        strip = figures.film_figure(images_BCHW[first], first_prediction, patch_size, colours, self.palette)
        self._save(strip, f"film{suffix}", run)
        file = run.folder.path / "pictures" / f"film{suffix}.gif"
        plotting.animation(figures.film_frames(images_BCHW[first], first_prediction, patch_size, colours), file)
        run.artifact(f"pictures/{file.name}")

    def _write_names(self, run: Run) -> None:
        """Write the name of the image in each row of each page."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["page", "row", "image"])
        for page, names in enumerate(self.drawn.values(), start=1):
            table.writerows([page, row, printable(name)] for row, name in enumerate(names, start=1))
        write_text(run.folder.path / "pictures" / NAMES, text.getvalue())
        run.artifact(f"pictures/{NAMES}")

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
