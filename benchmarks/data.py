"""Images per second of the data path: JPEG files to augmented batches on the device.

* per core: one thread reads, decodes, augments and collates; beside it the plain form (benchmarks/data_path.py),
  alternating.
* with workers: whole batches as training gets them, with several loading processes.

The files are made here: photograph-like JPEG images of 500 x 375 pixels, ImageNet's most frequent size.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import data_path
from benchmarks.data_path import photo
from benchmarks.hardware import choose
from benchmarks.timing import seconds_of
from semaim.core.distributed import Processes, usable_cpus

WIDTH, HEIGHT, QUALITY = 500, 375, 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--images", type=int, default=512, help="JPEG files to make")
    parser.add_argument("--path-images", type=int, default=24, help="JPEG files of a round on one core")
    parser.add_argument("--image-size", type=int, default=224, help="pixels of the crop")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="*", help="numbers of loading processes; default: powers of two")
    parser.add_argument("--repeats", type=int, default=10, help="batches that are timed")


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.images, args.path_images, args.image_size, args.batch_size, args.workers, args.repeats = 16, 2, 64, 4, [1], 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON."""
    device = choose(args.device)
    workers = args.workers or [n for n in (1, 2, 4, 8, 16, 32) if n <= usable_cpus()]
    with tempfile.TemporaryDirectory() as folder:
        jpeg_folder(Path(folder), args.images)
        return {
            "per_core": data_path.measure(args.path_images, args.repeats),
            "workers": [with_workers(Path(folder), args, device, n) for n in workers],
        }


def with_workers(folder: Path, args: argparse.Namespace, device: torch.device, workers: int) -> dict[str, Any]:
    """Batches from loading processes, after those that they have prepared."""
    from semaim.data.workers import PREFETCH

    batches = loader(folder, args, device, workers)
    ready = workers * PREFETCH
    for batch in islice(batches, ready + 1):
        on_device(batch, device)
    count = max(args.repeats, 2 * ready)

    def take() -> None:
        for batch in islice(batches, count):
            on_device(batch, device)

    return {"workers": workers, "images_per_second": count * args.batch_size / seconds_of(take, device)}


def jpeg_folder(folder: Path, count: int) -> None:
    """Write JPEG files."""

    def make(index: int) -> None:
        of_class = folder / "train" / f"class{index % 8}"
        of_class.mkdir(parents=True, exist_ok=True)
        photo(WIDTH, HEIGHT, index).save(of_class / f"{index}.jpg", quality=QUALITY)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(make, range(count)))


def loader(folder: Path, args: argparse.Namespace, device: torch.device, workers: int) -> Iterator[Any]:
    """The batches of training without end, as `semaim run data=folder` loads them."""
    from hydra.utils import instantiate

    from semaim.config.run_spec import compose_run_spec
    from semaim.core.signals import StopRequest
    from semaim.data.loading import StepPlan, TrainingImages, training_batches

    options = {"root": folder, "image_size": args.image_size, "patch_size": args.patch_size, "num_workers": workers}
    spec = compose_run_spec(["data=folder", *(f"data.{name}={value}" for name, value in options.items())])
    training = instantiate(spec.cfg.data, _convert_="all").training()
    plan = StepPlan(len(training.images), args.batch_size, seed=0)
    images = TrainingImages(training.images, training.transform, 0)
    stop = StopRequest()
    stop.restore()  # Ctrl-C ends a benchmark at once
    return training_batches(images, plan, range(10**9), training.loading, Processes(0, 1, device), stop)


def on_device(batch: Any, device: torch.device) -> Tensor:
    """The normalised images of a batch on the device."""
    return batch.to(device).images_BCHW
