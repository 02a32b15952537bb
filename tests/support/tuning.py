"""Fine-tunings of a small pretrained encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate

from semaim.tasks.finetune import FineTuning
from support.in_process import job

TUNE = (
    "tracking=none",
    "data.patch_size=8",
    "task=finetune",
    "trainer.log_every_steps=1",
    "task.mixup=0.8",
    "task.cutmix=1.0",
    "task.label_smoothing=0.1",
    "task.train_transform.erase=0.25",
)


def task(pretrained: Path | str, *overrides: str) -> FineTuning:
    """Fine-tuning task of a command line, not yet run."""
    torch.manual_seed(0)
    return instantiate(job(*TUNE, "run_name=x", f"checkpoint={pretrained}", *overrides).cfg.task, _convert_="all")
