"""Images for training and evaluation: a source, its transforms, and loading options."""

from __future__ import annotations

import math
from collections.abc import Callable

from semaim.core.image_size import pair
from semaim.data.image_sets import ImageSet, Splits
from semaim.data.loading import EvaluationImages, TrainingData
from semaim.data.pixels import Transform, on_device
from semaim.data.subsets import hold_out
from semaim.data.workers import Loading
from semaim.errors import NeedsOptions, UserError

__all__ = ["ImageData"]


class ImageData:
    """Images of the `data` group of the configuration.

    Args:
        source: builds the image sets, from the root if there is one.
        root: folder of the images; null for embedded images.
        image_size: pixels after cropping, one number or (height, width).
        patch_size: pixels per side of a patch; the model uses the same value.
        train_transform: PIL image to normalised tensor, augmented; a `PixelTransform` normalises on the device.
        eval_transform: the same without augmentation.
        num_workers: loading processes per training process, at most the usable CPUs; 0 loads in the training process.
        timeout_seconds: longest wait for a batch.
        max_unreadable: distinct unreadable images that are skipped before the run ends.
        val_fraction: share of every class of the training images to hold out, if the source has no held-out images.
        val_seed: seed of this split.
        accept_changes: continue a run although its images are not those it was started with.

    Raises:
        UserError: if the image size is not divisible by the patch size, or the source already has held-out images.
    """

    def __init__(
        self,
        source: Callable[..., Splits],
        root: str | None,
        image_size: int | tuple[int, int],
        patch_size: int,
        train_transform: Transform,
        eval_transform: Transform,
        num_workers: int,
        timeout_seconds: float,
        max_unreadable: int,
        val_fraction: float | None,
        val_seed: int,
        accept_changes: bool = False,
    ) -> None:
        self.image_size = pair(image_size)
        if any(side % patch_size for side in self.image_size):
            raise UserError(
                f"data.image_size={self.image_size[0]}x{self.image_size[1]} is not divisible by "
                f"data.patch_size={patch_size}"
            )
        splits = source() if root is None else source(root)
        self.splits = splits if val_fraction is None else _with_held_out(splits, val_fraction, val_seed)
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        size = max(self._image_bytes(train_transform), self._image_bytes(eval_transform))
        self.loading = Loading(num_workers, timeout_seconds, size)
        self.max_unreadable = max_unreadable
        self.unreadable: set[str] = set()  # names of those that were logged
        self.accept_changes = accept_changes

    def training(self, images: ImageSet | None = None, transform: Transform | None = None) -> TrainingData:
        """Training data; by default all training images with their own augmentation."""
        images = self.splits.train if images is None else images
        transform = self.train_transform if transform is None else transform
        self.loading.image_bytes = max(self.loading.image_bytes, self._image_bytes(transform))
        return TrainingData(
            images,
            transform,
            self.loading,
            self.max_unreadable,
            self.accept_changes,
            self.splits.val,
            self.unreadable,
        )

    def _image_bytes(self, transform: Transform) -> int:
        """Size of a transformed image: of its pixels, or of float32 if the transform normalises."""
        colours, float32 = 3, 4
        return colours * math.prod(self.image_size) * (float32 if on_device(transform) is None else 1)

    def labelled_and_held_out(self) -> tuple[ImageSet, ImageSet]:
        """Labelled training images and held-out images of an evaluation.

        Raises:
            UserError: if there are no labels, or no held-out images.
        """
        if self.splits.labelled is None:
            raise UserError("these data have no labels, which an evaluation needs: choose others with data=...")
        if self.splits.val is None:
            raise NeedsOptions(
                "these data have no held-out images, and accuracy on training images is not meaningful. Put held-out "
                "images beside train/ as val/, or hold out a tenth of each class",
                "data.val_fraction=0.1",
            )
        return self.splits.labelled, self.splits.val

    def evaluation(self, images: ImageSet, indices: list[int]) -> EvaluationImages:
        """Some images of a set, without augmentation."""
        return EvaluationImages(images, self.eval_transform, indices)


def _with_held_out(splits: Splits, fraction: float, seed: int) -> Splits:
    if splits.val is not None:
        raise UserError(
            f"data.val_fraction={fraction}, but these data have held-out images of their own: leave it null"
        )
    if splits.labelled is None:
        raise UserError(f"data.val_fraction={fraction} holds out a share of every class, but these data have no labels")
    kept, held = hold_out(splits.labelled, fraction, seed)
    return Splits(kept, kept, held, splits.classes)
