"""Pictures of orders, maps and reconstructions of images, by one checkpoint or several side by side.

Shapes: B images, L patches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from semaim import drawing, pictures
from semaim.data import ImageData
from semaim.data.loading import UNREADABLE
from semaim.data.sources import ImageSet, image_files
from semaim.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform, evaluation
from semaim.distributed import Processes
from semaim.encoders import MLFLOW, Tracking
from semaim.errors import UserError
from semaim.interop import model_of, read_checkpoint
from semaim.models.aim import AIM
from semaim.passes import Passes
from semaim.permutations import Permutation
from semaim.pictures import Seen
from semaim.run_context import Run
from semaim.semantics import SemanticMap
from semaim.stored import StoredEncoder
from semaim.targets import Target
from semaim.teachers import Teacher
from semaim.views import Colours, Prediction, draw_orders, maps, predict

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
        order: name of the order that it was trained with; None if it does not say.
    """

    name: str
    model: AIM
    average: AIM | None
    transform: Transform
    colours: Colours
    order: str | None


class Visualize:
    """The task.

    Args:
        checkpoint: a run folder or file, or several.
        tracking: where mlflow:<run id> is looked up.
        images: a folder of images or files of images; null for held-out images of the data.
        data: images; how they are prepared is taken from the checkpoint.
        count: images to draw, evenly spread over all there are.
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
        for name in [*(orders or []), *([predict_order] if predict_order else [])]:
            if name not in permutations:
                raise UserError(f"task.orders: there is no order {name}; choose from {', '.join(permutations)}")
        if not formats or set(formats) - {"png", "svg"}:
            raise UserError(f"task.formats={list(formats)} is unknown: choose png, svg or both")
        drawing.check_palette(palette)
        names = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
        self.images: ImageSet = data.source.val or data.source.train
        if images is not None:
            self.images = image_files([images] if isinstance(images, str) else images)
        self.indices = spread(len(self.images), count)
        self.permutations = permutations
        self.predict_order = predict_order
        self.semantic_map = semantic_map
        self.target = target
        self.palette = palette
        self.formats = list(formats)
        headings = what_differs(names)
        self.shown = [load(*each, tracking, target.source == "ema") for each in zip(names, headings, strict=True)]
        self.orders = orders or (SOME_ORDERS if len(names) == 1 else None)
        for each in self.shown:
            if each.model.architecture["out_channels"] == target.channels:
                target.check(each.model)

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError for what cannot work on these processes."""
        if isinstance(self.target, Teacher):
            self.target.load()
            self.target.to(processes.device)

    def run(self, run: Run) -> dict[str, float]:
        """Draw; how many images there are."""
        if run.processes.is_main:
            for page, start in enumerate(range(0, len(self.indices), ON_A_PAGE)):
                self._draw(self.indices[start : start + ON_A_PAGE], page, run)
        return {"images": len(self.indices)}

    def next_commands(self, folder: Path, overrides: Sequence[str]) -> dict[str, str]:
        """What a person may want to do after this run."""
        return {"pictures": str(folder / "pictures")}

    def _draw(self, indices: Sequence[int], page: int, run: Run) -> None:
        seen = []
        images_BHWC = None
        for number, each in enumerate(self.shown):
            images_BCHW = self._read(indices, each.transform).to(run.processes.device)
            each.model.to(run.processes.device)
            made, prediction = self._look(each, images_BCHW, run.seed)
            seen.append(made)
            if images_BHWC is None:
                images_BHWC = each.colours.shown(images_BCHW)
            if prediction is not None:
                suffix = f"_{number + 1}" if len(self.shown) > 1 else ""
                self._draw_prediction(each, images_BCHW, prediction, suffix, page, run)
        assert images_BHWC is not None
        self._save(pictures.orders_figure(images_BHWC, seen, self.palette), "orders", page, run)

    def _look(self, shown: Shown, images_BCHW: Tensor, seed: int) -> tuple[Seen, Prediction | None]:
        """Maps, orders and (where this target is the model's) predictions of some images."""
        model = shown.model
        encoders: dict[str, Any] = {"online": model, "ema": shown.average, "teacher": self.target}
        passes = Passes({name: encoder for name, encoder in encoders.items() if encoder is not None}, images_BCHW)
        with torch.no_grad():
            found = maps(passes, "online", self.semantic_map)
            orders = draw_orders(self.permutations, model.grid, found.semantic_BL, seed)
            trained_with = shown.order if shown.order in orders else "attention_center"
            drawn = {name: orders[name] for name in self.orders or [trained_with]}
            if model.architecture["out_channels"] != self.target.channels:
                return Seen(shown.name, found, drawn, model.grid), None
            order_BL = orders[self.predict_order or trained_with]
            predictions_BLP = model.predict(images_BCHW, order_BL)
            prediction = predict(predictions_BLP, images_BCHW, order_BL, self.target, passes, model.grid)
        return Seen(shown.name, found, drawn, model.grid), prediction

    def _draw_prediction(
        self, shown: Shown, images_BCHW: Tensor, prediction: Prediction, suffix: str, page: int, run: Run
    ) -> None:
        colours, grid, patch_size = shown.colours, shown.model.grid, shown.model.patch_size
        images_BHWC = colours.shown(images_BCHW)
        figure = pictures.reconstruction_figure(images_BHWC, prediction, grid, colours, self.palette)
        self._save(figure, f"reconstruction{suffix}", page, run)
        few = slice(0, 4)  # a film strip is long
        part = prediction.of(few)
        strip = pictures.film_figure(images_BCHW[few], part, patch_size, colours, self.palette)
        self._save(strip, f"film{suffix}", page, run)
        file = run.folder.path / "pictures" / f"film{suffix}{self._page(page)}.gif"
        drawing.animation(pictures.film(images_BCHW[few], part, patch_size, colours), file)
        run.artifact(f"pictures/{file.name}")

    def _save(self, figure: Any, name: str, page: int, run: Run) -> None:
        path = run.folder.path / "pictures" / f"{name}{self._page(page)}"
        for file in drawing.save(figure, path, self.formats):
            log.info("%s", file)
            run.artifact(f"pictures/{file.name}")

    def _page(self, page: int) -> str:
        return f"_page{page + 1}" if len(self.indices) > ON_A_PAGE else ""

    def _read(self, indices: Sequence[int], transform: Transform) -> Tensor:
        images = []
        for index in indices:
            try:
                images.append(transform(self.images.read(index)))
            except UNREADABLE as error:
                raise UserError(f"{self.images.name(index)} cannot be read ({error}): leave it out") from error
        return torch.stack(images)


def spread(total: int, count: int) -> list[int]:
    """So many indices, evenly spread, or all there are."""
    return [index * total // min(count, total) for index in range(min(count, total))]


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
    order = state.get("choices", {}).get("permutation")
    return Shown(heading, model, average, transform, Colours(mean, std), order)
