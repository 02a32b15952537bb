"""Images for training and evaluation: a source, its transforms, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable

from semaim.data.loading import EvaluationImages, TrainingImages
from semaim.data.sources import ImageSet, Splits
from semaim.data.transforms import Transform
from semaim.errors import UserError
from semaim.models.aim import pair

__all__ = ["ImageData"]


class ImageData:
    """A data group of the configuration.

    Args:
        source: makes the sets of images, from the root if there is one.
        root: folder of the images; null for embedded ones.
        image_size: pixels after cropping, one number or (height, width).
        patch_size: pixels per side of the patches these images are cut into; the model takes it from here.
        train_transform, eval_transform: PIL image to normalised tensor.
        num_workers: loading processes per training process, at most the usable CPUs; 0 loads in the training process.
        max_unreadable: distinct unreadable images that are passed over before the run ends.

    Raises:
        UserError: if the image size is not divisible by the patch size.
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
        max_unreadable: int,
    ) -> None:
        self.image_size = pair(image_size)
        if any(side % patch_size for side in self.image_size):
            raise UserError(
                f"data.image_size={self.image_size[0]}x{self.image_size[1]} is not divisible by "
                f"data.patch_size={patch_size}"
            )
        for name, value in (("num_workers", num_workers), ("max_unreadable", max_unreadable)):
            if value < 0:
                raise UserError(f"data.{name}={value} must not be negative")
        self.source = source() if root is None else source(root)
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.num_workers = num_workers
        self.max_unreadable = max_unreadable

    def training(self, seed: int) -> TrainingImages:
        """The augmented training images."""
        return TrainingImages(self.source.train, self.train_transform, seed)

    def evaluation(self, images: ImageSet, indices: list[int]) -> EvaluationImages:
        """Some images of a set, without augmentation."""
        return EvaluationImages(images, self.eval_transform, indices)
