"""Pictures and order quality on the same held-out images at several steps of training.

Shapes: B images, C colours, H x W pixels, L patches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from semaim.core.files import atomic
from semaim.core.seeding import derive_seed
from semaim.data.image_data import ImageData
from semaim.data.object_patches import object_patches
from semaim.data.samples import read_images, sample_indices
from semaim.errors import UserError
from semaim.evaluation.evaluator import Evaluator, Learner
from semaim.evaluation.order_metrics import means, order_metrics
from semaim.permutations import Grid
from semaim.runs.context import Run
from semaim.visualization import figures, plotting
from semaim.visualization.figures import ModelView, Shown
from semaim.visualization.views import Colours, View, Viewer

log = logging.getLogger(__name__)

KEY = "pictures/held_out"


@dataclass(frozen=True)
class Sample:
    """Names, normalised images, bool (B, L) of their object patches (none where unknown), and which images they are."""

    names: Sequence[str]
    images_BCHW: Tensor
    object_BL: Tensor
    of: str


class OnlinePictures(Evaluator):
    """Draws maps, orders and predictions during training, always for the same held-out (else training) images.

    Its metrics, order/..., describe the orders (see `semaim.evaluation.order_metrics`).

    Writes a PNG and pictures/step_<step>.npz (maps, orders, the error of every patch, and of models that predict only
    some which these are) to the run folder. The next update compares its orders with those of the file.

    Args:
        every_epochs: see `Evaluator`.
        images: number of images; metrics are means over them.
        drawn: number of these images to draw.
        palette: colour map of maps and orders, by matplotlib's name.
        mean, std: normalisation of the images' colours.

    Raises:
        UserError: for numbers out of range.
    """

    highlights: ClassVar[dict[str, str]] = {
        "pictures/held_out, order/...": "maps, orders and predictions for the same images, as pictures over steps "
        "(enlarge the chart and scroll), and the quality of the orders"
    }

    def __init__(
        self,
        every_epochs: int | None,
        images: int,
        drawn: int,
        palette: str,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(every_epochs)
        if not 1 <= drawn <= images:
            raise UserError(f"task.evaluators.pictures.drawn={drawn} must be from 1 to its images={images}")
        plotting.check_palette(palette, "task.evaluators.pictures.palette")
        self.images = images
        self.drawn = drawn
        self.palette = palette
        self.colours = Colours(mean, std)
        self._loaded_sample: Sample | None = None

    def evaluate(self, learner: Learner, run: Run) -> dict[str, float]:
        """Draw and save the current state (first process only); returns metrics of the orders."""
        if not run.processes.is_main:
            return {}
        order, step = run.choices["permutation"], learner.step
        model, encoders, network = learner.model, learner.encoders, learner.map_network or "online"
        viewer = Viewer(model, encoders, network, learner.semantic_map, {order: learner.permutation}, learner.target)
        sample = self._sample(learner.data, viewer.model.patch_size)
        images_BCHW = sample.images_BCHW.to(run.processes.device)
        view = viewer.view(images_BCHW, derive_seed(run.seed, "pictures", step), order)
        assert view.prediction is not None
        folder = run.folder.path / "pictures"
        folder.mkdir(exist_ok=True)
        previous_BL = _previous_orders(folder, step, sample.names)
        path = folder / f"step_{step:08d}"
        arrays = {
            "image": np.array(sample.names),
            "attention_BL": view.maps.attention_BL.cpu().numpy(),
            "semantic_map_BL": view.maps.semantic_BL.cpu().numpy(),
            "order_BL": view.orders[order].cpu().numpy(),
            "error_BL": view.prediction.error_BL.cpu().numpy(),
        }
        if view.prediction.counted_BL is not None:
            arrays["predicted_BL"] = view.prediction.counted_BL.cpu().numpy()
        with atomic(path.with_suffix(".npz")) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the second name for an option
        self._draw(path, sample, view, order, viewer.model.grid)
        run.image(KEY, step, f"pictures/{path.name}.png")
        order_BL = view.orders[order].cpu()
        quality = order_metrics(viewer.model.grid, order_BL, view.maps.semantic_BL.cpu(), sample.object_BL, previous_BL)
        return {f"order/{name}": value for name, value in means(quality).items()}

    def _sample(self, data: ImageData, patch_size: int) -> Sample:
        """The images, read on first use."""
        if self._loaded_sample is None:
            images = data.splits.val or data.splits.train
            of = f"of {len(images)} {'training' if data.splits.val is None else 'held-out'} images"
            sample = sample_indices(len(images), self.images)
            indices, images_BCHW = read_images(images, sample, data.eval_transform, data.unreadable)
            object_BL = object_patches(images, indices, data.eval_transform, patch_size)
            names = [images.name(index) for index in indices]
            self._loaded_sample = Sample(names, images_BCHW, object_BL, of)
            drawn = len(names[self._drawn(len(names))])
            log.info("pictures show %d %s; order/... are means over %d, whose names are in pictures/step_*.npz",
                     drawn, of, len(names))  # fmt: skip
        return self._loaded_sample

    def _drawn(self, images: int) -> slice:
        """Which of the images are drawn."""
        stride = max(1, images // self.drawn)
        return slice(0, self.drawn * stride, stride)

    def _draw(self, path: Path, sample: Sample, view: View, order: str, grid: Grid) -> None:
        drawn = self._drawn(len(sample.names))
        view = view.subset(drawn)
        assert view.prediction is not None
        model_view = ModelView("", view.maps, {order: view.orders[order]}, grid)
        names = sample.names[drawn]
        shown = Shown(self.colours.denormalise(sample.images_BCHW[drawn]), names, f"{len(names)} {sample.of}")
        figure = figures.overview_figure(shown, model_view, view.prediction, self.colours, self.palette)
        plotting.save_figure(figure, path, ["png"])


def _previous_orders(folder: Path, step: int, names: Sequence[str]) -> Tensor | None:
    """The orders (B, L) of the same images at the last update before a step, if there was one."""
    earlier = [file for file in sorted(folder.glob("step_*.npz")) if int(file.stem.removeprefix("step_")) < step]
    if not earlier:
        return None
    try:
        with np.load(earlier[-1]) as stored:
            same = stored["image"].tolist() == list(names)
            return torch.from_numpy(stored["order_BL"]) if same else None
    except Exception as error:  # numpy and zipfile raise many types
        log.warning("%s is damaged (%s): orders are not compared with it", earlier[-1], error)
        return None
