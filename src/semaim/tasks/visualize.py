"""Pictures of orders, maps and reconstructions of images, by one checkpoint or several side by side.

Shapes: B images, L patches.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
from semaim.teachers import Teacher
from semaim.visualization import figures, plotting
from semaim.visualization.figures import Seen
from semaim.visualization.views import Colours, Prediction, Viewer

log = logging.getLogger(__name__)
ON_A_PAGE = 16  # images of a figure
SOME_ORDERS = ("raster", "stochastic", "attention", "attention_center")  # as in the paper's figure


@dataclass
class Shown:
    """A model that is shown.

    Attributes:
        name: as a heading.
        model: in eval mode.
        average: its moving average, if a target needs it.
        transform: what its images are prepared with.
        colours: how they are normalised.
        order, target: names of what it was trained with; None if it does not say.
    """

    name: str
    model: AIM
    average: AIM | None
    transform: Transform
    colours: Colours
    order: str | None
    target: str | None


class Visualize:
    """The task.

    Args:
        checkpoint: a run folder or file, or several.
        tracking: where mlflow:<run id> is looked up.
        images: a folder of images or files of images; null for held-out images of the data.
        data: images; how they are prepared is taken from the checkpoint.
        count: images to draw, the same random ones every time.
        permutations: the orders there are, by name.
        orders: names of those to draw; null for some of each kind, or, of several checkpoints, the one that each was
            trained with.
        predict_order: the order to predict in; null for the one that the model was trained with.
        semantic_map: kind of the semantic map; its tokens are the model's own.
        target: what the models predict.
        palette: colour map of maps and orders, by matplotlib's name.
        formats: "png", "svg" or both.

    Raises:
        UserError: for what cannot be drawn.
    """

    metric = "images"
    look_at: ClassVar[dict[str, str]] = {"artifacts, pictures": "orders and maps, predictions, and film strips"}

    def __init__(
        self,
        checkpoint: str | Sequence[str] | None,
        tracking: Tracking,
        images: str | Sequence[str] | None,
        data: ImageData,
        count: int,
        permutations: Mapping[str, Permutation],
        orders: Sequence[str] | None,
        predict_order: str | None,
        semantic_map: SemanticMap,
        target: Target,
        palette: str,
        formats: Sequence[str],
    ) -> None:
        if not checkpoint:
            raise UserError("task=visualize needs a checkpoint: checkpoint=runs/<name>, or several: checkpoint=[a,b]")
        if count < 1:
            raise UserError(f"task.count={count} must be positive")
        for option, asked in (("orders", orders or []), ("predict_order", [predict_order] if predict_order else [])):
            if unknown := [name for name in asked if name not in permutations]:
                raise UserError(f"task.{option}: there is no order {unknown[0]}; choose from {', '.join(permutations)}")
        if not formats or set(formats) - {"png", "svg"}:
            raise UserError(f"task.formats={list(formats)} is unknown: choose png, svg or both")
        plotting.check_palette(palette, "task.palette")
        names = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
        self.images: ImageSet = data.splits.val or data.splits.train
        if images is not None:
            self.images = image_files([images] if isinstance(images, str) else images)
        self.indices = sample_indices(len(self.images), count)
        self.permutations = permutations
        self.predict_order = predict_order
        self.semantic_map = semantic_map
        self.target = target
        self.palette = palette
        self.formats = list(formats)
        headings = what_differs(names)
        self.shown = [load(*each, tracking, target.network_name == "ema") for each in zip(names, headings, strict=True)]
        self.orders = orders or (SOME_ORDERS if len(names) == 1 else None)

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError for what cannot work on these processes."""
        if isinstance(self.target, Teacher):
            self.target.load()
            self.target.to(processes.device)

    def run(self, run: Run) -> dict[str, float]:
        """Draw; how many images there are, and how good the orders are that are drawn (means over these images)."""
        quality: dict[str, list[Tensor]] = defaultdict(list)
        if run.processes.is_main:
            for page, start in enumerate(range(0, len(self.indices), ON_A_PAGE)):
                for name, value_B in self._draw(self.indices[start : start + ON_A_PAGE], page, run).items():
                    quality[name].append(value_B)
        found = means({name: torch.cat(parts) for name, parts in quality.items()})
        run.log(0, found)
        return {"images": len(self.indices), **found}

    def next_commands(self, folder: Path, spec: RunSpec) -> dict[str, str]:
        """What a person may want to do after this run."""
        return {"pictures": str(folder / "pictures")}

    def _draw(self, indices: Sequence[int], page: int, run: Run) -> dict[str, Tensor]:
        """Draw one page; how good each order is, (B,) each, by the name of the number."""
        seen: list[Seen] = []
        quality: dict[str, Tensor] = {}
        images_BHWC = None
        for number, each in enumerate(self.shown):
            readable, images_BCHW = read_images(self.images, indices, each.transform)
            images_BCHW = images_BCHW.to(run.processes.device)
            each.model.to(run.processes.device)
            made, prediction = self._look(each, images_BCHW, run)
            seen.append(made)
            object_BL = object_patches(self.images, readable, each.transform, each.model.patch_size)
            several = f"{each.name}/" if len(self.shown) > 1 else ""
            quality |= {f"{several}{name}": value_B for name, value_B in of_orders(made, object_BL).items()}
            if images_BHWC is None:
                images_BHWC = each.colours.shown(images_BCHW)
            if prediction is not None:
                suffix = f"_{number + 1}" if len(self.shown) > 1 else ""
                self._draw_prediction(each, images_BCHW, prediction, suffix, page, run)
        assert images_BHWC is not None
        self._save(figures.orders_figure(images_BHWC, seen, self.palette), "orders", page, run)
        return quality

    def _look(self, shown: Shown, images_BCHW: Tensor, run: Run) -> tuple[Seen, Prediction | None]:
        """Maps, orders and (where this target is the model's) predictions of some images."""
        model, colours = shown.model, shown.colours
        target = self.target.fitted(model, colours.mean, colours.std)
        encoders: dict[str, Any] = {"online": model, "ema": shown.average, "teacher": target}
        there = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        viewer = Viewer(model, there, "online", self.semantic_map, self.permutations, target)
        trained_with = "attention_center"
        if shown.order is not None and shown.order in self.permutations:
            trained_with = shown.order
        predicts = model.architecture["out_channels"] == target.channels and shown.target in (
            None,
            run.choices["target"],
        )
        if not predicts:
            log.info(
                "%s predicts %s: to see how well, say so", shown.name, f"target={shown.target or 'something else'}"
            )
        view = viewer.look(images_BCHW, run.seed, (self.predict_order or trained_with) if predicts else None)
        drawn = {name: view.orders[name] for name in self.orders or [trained_with]}
        return Seen(shown.name, view.maps, drawn, model.grid), view.prediction

    def _draw_prediction(
        self, shown: Shown, images_BCHW: Tensor, prediction: Prediction, suffix: str, page: int, run: Run
    ) -> None:
        colours, grid, patch_size = shown.colours, shown.model.grid, shown.model.patch_size
        images_BHWC = colours.shown(images_BCHW)
        figure = figures.reconstruction_figure(images_BHWC, prediction, grid, colours, self.palette)
        self._save(figure, f"reconstruction{suffix}", page, run)
        few = slice(0, 4)  # a film strip is long
        part = prediction.of(few)
        strip = figures.film_figure(images_BCHW[few], part, patch_size, colours, self.palette)
        self._save(strip, f"film{suffix}", page, run)
        file = run.folder.path / "pictures" / f"film{suffix}{self._page(page)}.gif"
        plotting.animation(figures.film(images_BCHW[few], part, patch_size, colours), file)
        run.artifact(f"pictures/{file.name}")

    def _save(self, figure: Any, name: str, page: int, run: Run) -> None:
        path = run.folder.path / "pictures" / f"{name}{self._page(page)}"
        for file in plotting.save_figure(figure, path, self.formats):
            log.info("%s", file)
            run.artifact(f"pictures/{file.name}")

    def _page(self, page: int) -> str:
        return f"_page{page + 1}" if len(self.indices) > ON_A_PAGE else ""


def of_orders(seen: Seen, object_BL: Tensor) -> dict[str, Tensor]:
    """How good each order is that a model would take, (B,) each; numbers that differ between orders name theirs."""
    found: dict[str, Tensor] = {}
    for order, order_BL in seen.orders.items():
        quality = order_metrics(seen.grid, order_BL.cpu(), seen.maps.semantic_BL.cpu(), object_BL)
        first = quality.pop("object_in_first_quarter")
        found |= quality | {f"object_in_first_quarter/{order}": first}
    return found


def what_differs(names: Sequence[str]) -> list[str]:
    """Short headings for checkpoints: the last parts of their paths, without the words that all begin or end with."""
    words = [Path(name).name.split("_") for name in names]
    for end in (0, -1):
        while len(words) > 1 and all(len(each) > 1 for each in words) and len({each[end] for each in words}) == 1:
            words = [each[1:] if end == 0 else each[:-1] for each in words]
    return ["_".join(each) for each in words]


def load(name: str, heading: str, tracking: Tracking, ema: bool) -> Shown:
    """A model to show, and how its images are prepared.

    Raises:
        UserError: if there is none of ours.
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
    return Shown(
        heading, model, average, transform, Colours(mean, std), choices.get("permutation"), choices.get("target")
    )
