"""Image transforms: PIL image in, normalised float tensor (3, height, width) out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from semaim.core.image_size import pair

Transform = Callable[[Image.Image], Tensor]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _to_normalised(mean: Sequence[float], std: Sequence[float]) -> list[Callable[..., object]]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]


def pretraining(
    image_size: int | tuple[int, int],
    scale: Sequence[float] = (0.2, 1.0),
    flip: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Random resized crop (bicubic) and horizontal flip: the augmentation of MAE and SemAIM's pretraining.

    Args:
        image_size: pixels after the crop.
        scale: range of the crop's share of the image's area.
        flip: probability of a horizontal flip.
        mean, std: colour normalisation.
    """
    crop = v2.RandomResizedCrop(pair(image_size), scale=tuple(scale), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip), *_to_normalised(mean, std)])


def linear_probe(
    image_size: int | tuple[int, int],
    flip: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Resize (bicubic), random crop and horizontal flip: the augmentation of SemAIM's linear probe.

    Args:
        image_size: pixels after the crop; the shorter side is resized to its larger side.
        flip: probability of a horizontal flip.
        mean, std: colour normalisation.
    """
    size = pair(image_size)
    resize = v2.Resize(max(size), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([resize, v2.RandomCrop(size), v2.RandomHorizontalFlip(flip), *_to_normalised(mean, std)])


def finetuning(
    image_size: int | tuple[int, int],
    scale: Sequence[float] = (0.08, 1.0),
    flip: float = 0.5,
    rand_augment: str | None = "rand-m9-mstd0.5-inc1",
    erase: float = 0.25,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Random resized crop, flip, RandAugment and random erasing, by timm: the augmentation of fine-tuning.

    Args:
        image_size: pixels after the crop.
        scale: range of the crop's share of the image's area.
        flip: probability of a horizontal flip.
        rand_augment: RandAugment in timm's notation; null for none.
        erase: probability that a rectangle is replaced by noise.
        mean, std: colour normalisation.
    """
    return create_transform(
        (3, *pair(image_size)),
        is_training=True,
        scale=tuple(scale),
        hflip=flip,
        color_jitter=None,
        auto_augment=rand_augment,
        interpolation="bicubic",
        re_prob=erase,
        re_mode="pixel",
        mean=tuple(mean),
        std=tuple(std),
    )


def evaluation(
    image_size: int | tuple[int, int],
    crop_ratio: float = 0.875,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Resize (bicubic) and centre crop: 256 then 224 at the default ratio.

    Args:
        image_size: pixels after the crop.
        crop_ratio: the crop's side over the resized image's shorter side.
        mean, std: colour normalisation.
    """
    size = pair(image_size)
    shorter = round(max(size) / crop_ratio)
    resize = v2.Resize(shorter, interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([resize, v2.CenterCrop(size), *_to_normalised(mean, std)])


def on_mask(transform: Transform, mask_HW: np.ndarray[Any, Any]) -> Tensor:
    """A mask, uint8 (H, W), resized and cropped like its image by a transform of `evaluation`.

    Interpolation is nearest-neighbour, so values are unchanged.
    """
    mask: Any = tv_tensors.Mask(torch.from_numpy(mask_HW))  # torchvision skips operations that do not apply to masks
    return transform(mask).as_subclass(Tensor)
