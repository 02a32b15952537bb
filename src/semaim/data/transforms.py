"""Image transforms: picture in, normalised float tensor (3, height, width) out.

They have two parts (`PixelTransform`): crops, flips and changes of colour on uint8, and the normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from semaim.core.image_size import pair
from semaim.data.pixels import Normalise, NormaliseAndErase, PixelTransform, Transform, to_pil, to_pixels
from semaim.errors import UserError

TRAINING = "the augmentation (data.train_transform, or task.train_transform of an evaluation)"  # for messages
EVALUATION = "data.eval_transform"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resized_crop(pixels: Tensor, top: int, left: int, height: int, width: int, size: tuple[int, int]) -> Tensor:
    """A crop of pixels, (C, height, width), resized (bicubic) to `size`.

    Pixels are copied with their colours side by side first, as decoded: torch resizes them much faster so.
    """
    crop_HWC = pixels[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous()
    return F.resize_image(crop_HWC.permute(2, 0, 1), list(size), InterpolationMode.BICUBIC)


class RandomResizedCrop:
    """torchvision's, for pixels only; its own call takes 0.1 ms to look for other inputs.

    Args:
        size: height and width of the result.
        scale: range of the crop's share of the image's area.
    """

    def __init__(self, size: tuple[int, int], scale: Sequence[float]) -> None:
        self.size = size
        self.random = v2.RandomResizedCrop(size, scale=tuple(scale))

    def __call__(self, pixels: Tensor) -> Tensor:
        return resized_crop(pixels, **self.random.make_params([pixels]), size=self.size)


class RandomHorizontalFlip:
    """torchvision's, for pixels only, likewise.

    Args:
        probability: of a flip.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.flip(-1) if torch.rand(1).item() < self.probability else pixels


class TimmRandomResizedCrop(RandomResizedCropAndInterpolation):  # type: ignore[misc]
    """timm's, which draws other boxes than torchvision's, for pixels only."""

    def __call__(self, img: Tensor) -> Tensor:
        top, left, height, width = self.get_params(img, self.scale, self.ratio)
        height, width = max(height, 1), max(width, 1)  # timm rounds a side of an image of one pixel to zero
        top, left = min(top, img.shape[1] - height), min(left, img.shape[2] - width)
        return resized_crop(img, top, left, height, width, self.size)


class CoveringCrop(torch.nn.Module):
    """Resize an image or mask to the smallest size that covers `cover`, and crop `size` from it.

    The resized sizes are those of timm's `crop_mode="center"`. Images are interpolated bicubically, masks by nearest
    neighbours.

    Args:
        size: height and width of the crop.
        cover: height and width that the resized image has at least.
        anywhere: crop at a random position, not in the centre.
    """

    LARGE = 64  # times the crop: only the part that is cropped is computed then

    def __init__(self, size: tuple[int, int], cover: tuple[int, int], anywhere: bool) -> None:
        super().__init__()
        self.size, self.cover, self.anywhere = size, cover, anywhere

    def extra_repr(self) -> str:
        return f"{self.size}, {self.cover}, {self.anywhere}"

    def forward(self, image: Any) -> Any:
        source = F.get_size(image)
        side, whole = max(zip(self.cover, source, strict=True), key=lambda pair: pair[0] / pair[1])
        rounded: Callable[[float], int] = int if self.cover[0] == self.cover[1] else round  # as timm does
        resized = [rounded(side * each / whole) for each in source]
        spare = [each - crop for each, crop in zip(resized, self.size, strict=True)]
        if self.anywhere:
            start = [int(torch.randint(0, each + 1, size=())) if each else 0 for each in spare]
        else:
            start = [round(each / 2) for each in spare]
        if math.prod(resized) <= self.LARGE * math.prod(self.size):
            return F.crop(F.resize(image, resized, InterpolationMode.BICUBIC), *start, *self.size)
        return self._part(image, source, [each / to for each, to in zip(source, resized, strict=True)], start)

    def _part(self, image: Any, source: list[int], scale: list[float], start: list[int]) -> Any:
        """The crop from `start` of an image resized by 1 / `scale`, of which the rest is not computed."""
        axes = list(zip(source, scale, start, self.size, strict=True))
        if isinstance(image, tv_tensors.Mask):
            rows, columns = (((first + torch.arange(side)) * each).long() for _, each, first, side in axes)
            return tv_tensors.wrap(image[..., rows[:, None], columns], like=image)
        ends, edges = [], []  # of the pixels that the crop depends on, and of the crop within them
        for whole, each, first, side in axes:
            low, high = first * each, min((first + side) * each, whole)
            reach = 2 * max(each, 1) + 1  # of the bicubic filter
            ends.append((max(0, math.floor(low - reach)), min(whole, math.ceil(high + reach))))
            edges.append((low - ends[-1][0], high - ends[-1][0]))
        near = to_pil(image[:, slice(*ends[0]), slice(*ends[1])])
        box = [each[end] for end in (0, 1) for each in edges[::-1]]
        return to_pixels(near.resize(self.size[::-1], Image.Resampling.BICUBIC, box))


def _normalise(mean: Sequence[float], std: Sequence[float]) -> Normalise:
    return Normalise(tuple(mean), tuple(std))


def transformed(transform: Transform, image: Any, name: str, option: str) -> Tensor:
    """An image by a transform: of a `PixelTransform` its pixels, which `on_device` normalises, of others the result.

    Args:
        transform: see above; other transforms than a `PixelTransform` get a PIL image.
        image: picture, or mask.
        name: of the image, for the message.
        option: that chooses the transform, for the message.

    Raises:
        UserError: if the transform fails, for whatever reason: the image is not at fault.
    """
    try:
        return transform.pixels(image) if isinstance(transform, PixelTransform) else transform(to_pil(image))
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{option} fails on {name!r}: {what}") from error


def pretraining(
    image_size: int | tuple[int, int],
    scale: Sequence[float] = (0.2, 1.0),
    flip: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PixelTransform:
    """Random resized crop (bicubic) and horizontal flip: the augmentation of MAE and SemAIM's pretraining.

    Args:
        image_size: pixels after the crop.
        scale: range of the crop's share of the image's area.
        flip: probability of a horizontal flip.
        mean, std: colour normalisation.
    """
    crop = RandomResizedCrop(pair(image_size), scale)
    return PixelTransform([crop, RandomHorizontalFlip(flip)], _normalise(mean, std))


def linear_probe(
    image_size: int | tuple[int, int],
    flip: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PixelTransform:
    """Resize (bicubic), random crop and horizontal flip: the augmentation of SemAIM's linear probe.

    Args:
        image_size: pixels after the crop; the image is resized to the smallest size that covers them.
        flip: probability of a horizontal flip.
        mean, std: colour normalisation.
    """
    size = pair(image_size)
    crop = CoveringCrop(size, size, anywhere=True)
    return PixelTransform([crop, RandomHorizontalFlip(flip)], _normalise(mean, std))


def finetuning(
    image_size: int | tuple[int, int],
    scale: Sequence[float] = (0.08, 1.0),
    flip: float = 0.5,
    rand_augment: str | None = "rand-m9-mstd0.5-inc1",
    erase: float = 0.25,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PixelTransform:
    """Random resized crop, flip, RandAugment and random erasing, by timm: the augmentation of fine-tuning.

    Args:
        image_size: pixels after the crop.
        scale: range of the crop's share of the image's area.
        flip: probability of a horizontal flip.
        rand_augment: RandAugment in timm's notation; null for none.
        erase: probability that a rectangle is replaced by noise.
        mean, std: colour normalisation.
    """
    size = pair(image_size)
    steps: list[Callable[[Any], Any]] = [TimmRandomResizedCrop(size, scale=tuple(scale)), RandomHorizontalFlip(flip)]
    if rand_augment is not None:
        how = {"auto_augment": rand_augment, "color_jitter": None, "interpolation": "bicubic", "mean": tuple(mean)}
        _, augment, _ = create_transform((3, *size), is_training=True, separate=True, **how)
        steps += [to_pil, augment, to_pixels]
    return PixelTransform(steps, NormaliseAndErase(tuple(mean), tuple(std), erase))


def evaluation(
    image_size: int | tuple[int, int],
    crop_ratio: float = 0.875,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PixelTransform:
    """Resize (bicubic) and centre crop: 256 then 224 at the default ratio.

    Args:
        image_size: pixels after the crop.
        crop_ratio: the crop's sides over those that the resized image covers.
        mean, std: colour normalisation.

    Raises:
        UserError: if the ratio is not above 0 and at most 1.
    """
    size = pair(image_size)
    return PixelTransform([CoveringCrop(size, covered(size, crop_ratio), anywhere=False)], _normalise(mean, std))


def covered(size: tuple[int, int], crop_ratio: float) -> tuple[int, int]:
    """Height and width that images cover after resizing, before a centre crop of `size`."""
    if not 0 < crop_ratio <= 1:
        raise UserError(f"data.eval_transform.crop_ratio={crop_ratio} must be above 0 and at most 1")
    return int(size[0] / crop_ratio), int(size[1] / crop_ratio)  # rounded down, as timm does


def on_mask(transform: Transform, mask_HW: np.ndarray[Any, Any]) -> Tensor:
    """A mask, uint8 (H, W), resized and cropped like its image by a transform of `evaluation`.

    Interpolation is nearest-neighbour, so values are unchanged.
    """
    mask = tv_tensors.Mask(torch.from_numpy(mask_HW))  # torchvision skips operations that do not apply to masks
    return transformed(transform, mask, "a mask", EVALUATION).as_subclass(Tensor)
