"""Images per second on one core: from JPEG files to a batch in memory, as semaim does it and in its former form.

The former form, which stays here as the reference: Pillow decodes, torchvision's and timm's transforms work on PIL
images, and a worker normalises in float32. semaim decodes by torchvision, crops pixels, and normalises on the device.

Both forms take turns on the same files, with the same crops. The time is that of the processor, which other programs
disturb less than the time of the clock; files are in the cache of the operating system.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from benchmarks.timing import ratio
from semaim.core.seeding import seeded
from semaim.data.image_sets import FileImages
from semaim.data.loading import EvaluationImages, batches_of
from semaim.data.pixels import PixelTransform
from semaim.data.transforms import IMAGENET_MEAN, IMAGENET_STD, evaluation, finetuning, pretraining

SIZE = 224
NORMALISED = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
BICUBIC = InterpolationMode.BICUBIC
FORMER: dict[str, Callable[[Any], Tensor]] = {
    "pretraining": v2.Compose(
        [v2.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=BICUBIC), v2.RandomHorizontalFlip(), *NORMALISED]
    ),
    "evaluation": v2.Compose([v2.Resize(256, BICUBIC), v2.CenterCrop(SIZE), *NORMALISED]),
    "RandAugment": create_transform(
        SIZE, is_training=True, color_jitter=None, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel",
    ),
}  # fmt: skip
NOW: dict[str, PixelTransform] = {
    "pretraining": pretraining(SIZE),
    "evaluation": evaluation(SIZE),
    "RandAugment": finetuning(SIZE),
}


def photo(width: int, height: int, seed: int) -> Image.Image:
    """A picture with as much detail as a photograph: noise at several scales; 44 kB as JPEG of 500x375, quality 90."""
    random = np.random.default_rng(seed)
    levels_HWC = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.5), (16, 0.25), (64, 0.15), (200, 0.1)):
        shape = (height * cells // 500 + 1, width * cells // 500 + 1, 3)
        noise = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        levels_HWC += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(levels_HWC.clip(0, 255).astype(np.uint8))


def former_batch(images: FileImages, name: str) -> Tensor:
    """A batch of all images in the former form: normalised, float32 (B, 3, SIZE, SIZE)."""
    tensors = []
    for index in range(len(images)):
        with Image.open(images.name(index)) as image:
            picture = image.convert("RGB")
        with seeded(index):  # which restored the generators in workers, too
            tensors.append(FORMER[name](picture))
    return torch.stack(tensors)


def batch(images: FileImages, name: str) -> Tensor:
    """A batch of all images as a worker of semaim makes it: pixels, uint8 (B, 3, SIZE, SIZE)."""
    samples = []
    dataset = EvaluationImages(images, NOW[name], range(len(images)))
    for index in range(len(images)):
        with seeded(index, restore=False):
            samples.append(dataset[index])
    result: Tensor = batches_of(dataset).collate(samples).images_BCHW
    return result


def measure(images: int = 32, rounds: int = 9, width: int = 500, height: int = 375) -> dict[str, dict[str, Any]]:
    """Measure both forms in turns, in this process with one thread.

    Args:
        images: files of each round.
        rounds: of which the medians are taken.
        width, height: of the files, JPEG of quality 90.

    Returns:
        for each path (pretraining, evaluation, RandAugment): images per second and core of semaim and of the former
        form ("plain"), and how many times as fast semaim is.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            names = [f"{index}.jpg" for index in range(images)]
            for index, name in enumerate(names):
                photo(width, height, index).save(Path(folder, name), quality=90)
            files = FileImages(Path(folder), names, None)
            return {name: _measure(files, name, rounds) for name in NOW}
    finally:
        torch.set_num_threads(threads)


def _measure(files: FileImages, name: str, rounds: int) -> dict[str, Any]:
    plain, semaim = [], []
    for _ in range(rounds):
        plain.append(_seconds(lambda: former_batch(files, name)))
        semaim.append(_seconds(lambda: batch(files, name)))
    return {
        "plain_images_per_second": len(files) / median(plain),
        "semaim_images_per_second": len(files) / median(semaim),
        "times_as_fast_as_plain": ratio(plain, semaim),
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
