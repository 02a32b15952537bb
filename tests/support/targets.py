"""Targets with small teachers, and the task that predicts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from semaim.config.compose import CONF
from semaim.tasks.pretrain import Pretraining
from support.commands import SMALL
from support.in_process import composed
from support.teaching import network, tiny_clip, tiny_dino, visual, write

ORDERS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "permutation").glob("*.yaml"))}
NOW = ("trainer.warmup_epochs=0", "trainer.max_steps=2")


def weights(folder: Path) -> dict[str, Any]:
    return torch.load(sorted((folder / "checkpoints").glob("*.pt"))[-1], weights_only=True)


def task_of(*overrides: str) -> Pretraining:
    """Pretraining task of a command line, with small weights from a fixed seed."""
    torch.manual_seed(0)
    return instantiate(composed(*SMALL, *overrides).task, _convert_="all")


def with_small_teachers(folder: Path) -> dict[str, tuple[str, ...]]:
    """Options of each target. A target with a teacher gets a small one, with its weights written into a folder."""
    dino = write(folder / "dino.pth", network(tiny_dino).state_dict())
    clip = write(folder / "clip.pth", visual(network(tiny_clip)))
    return {
        "pixels": (),
        "online": ("target=online",),
        "ema": ("target=ema", "trainer.ema_decay=[0.9,0.9]"),
        "dino": ("target=dino", "target.model=tiny_dino.here", f"target.weights={dino}"),
        "clip": ("target=clip", "target.model=tiny_clip.here", f"target.weights={clip}"),
    }
