"""Randomness as a pure function of (seed, purpose, position in training), so that there is little state to save."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one purpose at one position, independent of all others.

    Args:
        seed: the run's seed, not negative.
        purpose: what the seed is for, such as "order" or "augmentation".
        position: for example epoch and image index; not negative.
    """
    entropy = np.random.SeedSequence([seed, crc32(purpose.encode()), *position])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (on all devices), python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int, restore: bool = True) -> Iterator[None]:
    """Seed the global CPU generators that image transforms use, and restore their states afterwards.

    Args:
        seed: for all of them.
        restore: false where nothing else draws from them; reading and writing NumPy's state takes 0.1 ms.
    """
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()) if restore else None
    try:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        if states is not None:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])


class StepNoise:
    """Uniform noise of one training step; independent of how the batch is split over processes.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        batch_size: images of the step, over all processes and micro-batches.
    """

    def __init__(self, seed: int, step: int, batch_size: int) -> None:
        self.seed = seed
        self.step = step
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "order", step))
        self.batch_size = batch_size
        self._batch_noise: torch.Tensor | None = None

    def seed_for(self, purpose: str, *position: int) -> int:
        """A seed for another random purpose in this step."""
        return derive_seed(self.seed, purpose, self.step, *position)

    def rows(self, first: int, count: int, columns: int, device: torch.device) -> torch.Tensor:
        """Noise of `count` images of the whole batch, starting at image `first`: (count, columns) in [0, 1).

        Drawn on the CPU, so that every device gets the same values. The first call fixes the number of columns. A GPU
        copies from pinned memory, for which the host does not wait.
        """
        if self._batch_noise is None:
            pinned = device.type == "cuda"
            self._batch_noise = torch.rand(self.batch_size, columns, generator=self.generator, pin_memory=pinned)
        return self._batch_noise[first : first + count].to(device, non_blocking=True)


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of this process's global generators, in types that a weights-only load accepts."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *(float(value) for value in rest)),
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state returned by `rng_state`."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of this process's global generators after a block."""
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    states = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(states, device)
