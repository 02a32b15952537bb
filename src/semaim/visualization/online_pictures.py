"""Pictures and order quality on the same held-out images at several steps of training.

Shapes: B images, C colours, H x W pixels, L patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semaim.core.files import atomic
from semaim.core.seeding import derive_seed
from semaim.data.image_data import ImageData
from semaim.data.object_patches import object_patches
from semaim.data.samples import read_images, sample_indices
from semaim.errors import UserError
from semaim.evaluation.order_metrics import means, order_metrics
from semaim.permutations import Grid
from semaim.runs.context import Run
from semaim.visualization import figures, plotting
from semaim.visualization.figures import ModelView
from semaim.visualization.views import Colours, View, Viewer

KEY = "pictures/held_out"


def evaluation_is_due(every_epochs: int | None, epoch: int, last: bool) -> bool:
    """Whether to evaluate after an epoch (0: before training): at the start, at the end, and every `every_epochs`."""
    return epoch == 0 or last or (every_epochs is not None and epoch % every_epochs == 0)


@dataclass(frozen=True)
class Sample:
    """Names, normalised images, and bool (B, L) of their object patches (none where unknown)."""

    names: Sequence[str]
    images_BCHW: Tensor
    object_BL: Tensor


class OnlinePictures:
    """Draws maps, orders and predictions during training, always for the same held-out (else training) images.

    Writes a PNG and pictures/step_<step>.npz (maps, orders, and the error of every patch) to the run folder. The next
    update compares its orders with those of the file.

    Args:
        every_epochs: epochs between updates, besides the first and the last; null for only these two.
        images: number of images; metrics are means over them.
        drawn: number of these images to draw.
        palette: colour map of maps and orders, by matplotlib's name.
        mean, std: normalisation of the images' colours.

    Raises:
        UserError: for numbers out of range.
    """

    def __init__(
        self,
        every_epochs: int | None,
        images: int,
        drawn: int,
        palette: str,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if every_epochs is not None and every_epochs < 1:
            raise UserError(f"task.pictures.every_epochs={every_epochs} must be positive, or null")
        if not 1 <= drawn <= images:
            raise UserError(f"task.pictures.drawn={drawn} must be from 1 to task.pictures.images={images}")
        plotting.check_palette(palette, "task.pictures.palette")
        self.every_epochs = every_epochs
        self.images = images
        self.drawn = drawn
        self.palette = palette
        self.colours = Colours(mean, std)
        self._loaded_sample: Sample | None = None

    def update(self, viewer: Viewer, order: str, data: ImageData, run: Run, step: int) -> dict[str, float]:
        """Draw and save the current state (first process only); returns metrics of the orders, named order/...

        Args:
            viewer: the current model, in eval mode, with the order that it is trained with.
            order: the name of that order.
            data: images.
            run: the run that the pictures belong to.
            step: of training.
        """
        if not run.processes.is_main:
            return {}
        sample = self._sample(data, viewer.model.patch_size)
        images_BCHW = sample.images_BCHW.to(run.processes.device)
        view = viewer.view(images_BCHW, derive_seed(run.seed, "pictures", step), order)
        folder = run.folder.path / "pictures"
        folder.mkdir(exist_ok=True)
        previous_BL = _previous_orders(folder, step, sample.names)
        path = folder / f"step_{step:08d}"
        self._save_arrays(path, sample, view, order)
        self._draw(path, images_BCHW, view, order, viewer.model.grid)
        run.image(KEY, step, f"pictures/{path.name}.png")
        order_BL = view.orders[order].cpu()
        quality = order_metrics(viewer.model.grid, order_BL, view.maps.semantic_BL.cpu(), sample.object_BL, previous_BL)
        return {f"order/{name}": value for name, value in means(quality).items()}

    def _sample(self, data: ImageData, patch_size: int) -> Sample:
        """The images, read on first use."""
        if self._loaded_sample is None:
            images = data.splits.val or data.splits.train
            indices, images_BCHW = read_images(images, sample_indices(len(images), self.images), data.eval_transform)
            object_BL = object_patches(images, indices, data.eval_transform, patch_size)
            self._loaded_sample = Sample([images.name(index) for index in indices], images_BCHW, object_BL)
        return self._loaded_sample

    def _save_arrays(self, path: Path, sample: Sample, view: View, order: str) -> None:
        """Write the data of the picture."""
        assert view.prediction is not None
        arrays = {
            "image": np.array(sample.names),
            "attention_BL": view.maps.attention_BL.cpu().numpy(),
            "semantic_map_BL": view.maps.semantic_BL.cpu().numpy(),
            "order_BL": view.orders[order].cpu().numpy(),
            "error_BL": view.prediction.error_BL.cpu().numpy(),
        }
        with atomic(path.with_suffix(".npz")) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the second name for an option

    def _draw(self, path: Path, images_BCHW: Tensor, view: View, order: str, grid: Grid) -> None:
        stride = max(1, len(images_BCHW) // self.drawn)
        drawn = slice(0, self.drawn * stride, stride)
        view = view.subset(drawn)
        assert view.prediction is not None
        model_view = ModelView("", view.maps, {order: view.orders[order]}, grid)
        images_BHWC = self.colours.denormalise(images_BCHW[drawn])
        plotting.save_figure(
            figures.overview_figure(images_BHWC, model_view, view.prediction, self.colours, self.palette), path, ["png"]
        )


def _previous_orders(folder: Path, step: int, names: Sequence[str]) -> Tensor | None:
    """The orders (B, L) of the same images at the last update before a step, if there was one."""
    earlier = [file for file in sorted(folder.glob("step_*.npz")) if int(file.stem.removeprefix("step_")) < step]
    if not earlier:
        return None
    with np.load(earlier[-1]) as stored:
        same = stored["image"].tolist() == list(names)
        return torch.from_numpy(stored["order_BL"]) if same else None
