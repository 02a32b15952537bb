"""Pixels of images, uint8, on their way to the network: what a worker does with one image, and the device with a batch.

Images leave the workers as uint8, which takes a quarter of the memory and of the copies that float32 would take. They
become normalised float32 on the device, here and nowhere else.

Shapes: B images, C colours, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from semaim.core.seeding import derive_seed

Picture = Image.Image | Tensor  # as image sets read it: in RGB, or its pixels, uint8 (3, H, W)
SEEDS = 2**63  # number of the seeds that `derive_seed` chooses from


def to_pixels(image: Any) -> Tensor:
    """Pixels, uint8 (3, H, W), of a picture; masks stay as they are."""
    if isinstance(image, Tensor):
        return image
    return F.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))


def to_pil(image: Any) -> Any:
    """A picture as PIL image; masks, and what an image set of the user's own reads, stay as they are."""
    if not isinstance(image, Tensor) or isinstance(image, tv_tensors.Mask):
        return image
    if image.dtype != torch.uint8 or image.ndim != 3:
        return image
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def size_of(image: Picture) -> tuple[int, int]:
    """Height and width of a picture."""
    height, width = F.get_size(image)
    return height, width


@dataclass(frozen=True)
class Normalise:
    """Scale pixels to [0, 1] and normalise their colours, on the device where they are.

    Attributes:
        mean, std: of the colours.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels_BCHW: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Normalised images, float32.

        Args:
            pixels_BCHW: uint8.
            seeds: of each image, by `derive_seed`, for what is random on the device.
        """
        mean_C11, std_C11 = _constants(self.mean, self.std, pixels_BCHW.device)
        images_BCHW = pixels_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
        return images_BCHW.div_(255).sub_(mean_C11).div_(std_C11)


@dataclass(frozen=True)
class NormaliseAndErase(Normalise):
    """The same, then random erasing (arXiv 1708.04896): in some images a rectangle is replaced by normal noise.

    The rectangle is a function of the image's seed, the noise one of the seed and the kind of device.

    Attributes:
        erase: probability for an image. The rectangle has 2 % to a third of its area, as in timm.
    """

    erase: float

    def __call__(self, pixels_BCHW: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        images_BCHW = super().__call__(pixels_BCHW)
        for image_CHW, seed in zip(images_BCHW, seeds, strict=True):
            if seed < self.erase * SEEDS:
                own = derive_seed(seed, "erasing")  # the seed itself has decided on crop and flip
                top, left, height, width = _rectangle(image_CHW, own)
                generator = torch.Generator(image_CHW.device).manual_seed(own)
                image_CHW[:, top : top + height, left : left + width].normal_(generator=generator)
        return images_BCHW


class PixelTransform:
    """A transform in two parts: a worker makes pixels of an image, and the device normalises those of a batch.

    Called with a PIL image, it does both and returns a normalised tensor, as other transforms do.

    Args:
        steps: one after the other, from pixels, uint8 (3, H, W), to pixels of the wanted size. Those of an evaluation
            also get masks.
        on_device: from these pixels of a batch to normalised images.
    """

    def __init__(self, steps: Sequence[Callable[[Any], Any]], on_device: Normalise) -> None:
        self.steps = steps
        self.on_device = on_device

    def pixels(self, image: Picture) -> Tensor:
        """Pixels, uint8 (3, height, width)."""
        pixels = to_pixels(image)
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def __call__(self, image: Picture) -> Tensor:
        pixels = self.pixels(image)
        seed = int(torch.randint(SEEDS - 1, ()))
        return self.on_device(pixels[None], [seed])[0]

    def __repr__(self) -> str:
        return f"PixelTransform({self.steps}, {self.on_device})"


Transform = Callable[[Image.Image], Tensor]  # to a normalised tensor; of these, semaim's own are PixelTransforms


def on_device(transform: Transform) -> Normalise | None:
    """What remains to be done on the device with the images of a transform; None if they are normalised already."""
    return transform.on_device if isinstance(transform, PixelTransform) else None


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C, 1, 1) on a device; copied once, since a copy waits for the device."""
    mean_C11, std_C11 = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
    return mean_C11, std_C11


def _rectangle(image_CHW: Tensor, seed: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the rectangle that is erased."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        drawn = v2.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)).make_params([image_CHW])
    return drawn["i"], drawn["j"], drawn["h"], drawn["w"]
