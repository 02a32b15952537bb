"""Linear probes of a small pretrained encoder; six steps take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from semaim.checkpoints import store
from semaim.tasks.linprobe import LinearProbe
from support.commands import journal
from support.in_process import job

# One pretrained encoder of 16 patches for the whole file; six steps of its probe take a second.
ENCODER = ("data.patch_size=8", "trainer.max_steps=2")
PROBE = (
    "tracking=none",
    "data.patch_size=8",
    "task=linprobe",
    "trainer.log_every_steps=1",
    "trainer.batch_size=64",
    "optimizer.base_lr=0.1",
)
SIX = ("trainer.max_steps=6", "run_name=probe")


def probe(pretrained: Path, *overrides: str) -> LinearProbe:
    """Linear-probe task of a command line, not yet run."""
    return instantiate(job(*PROBE, "run_name=x", f"checkpoint={pretrained}", *overrides).cfg.task, _convert_="all")


def measured(folder: Path) -> dict[tuple[int, str], float]:
    """All metrics of the journal except timings."""
    speed = {"images_per_second", "device_hours", "device_hours_projected", "mfu", "tflops", "peak_memory_gib"}
    timed = {"data/wait"} | {f"train/{name}" for name in speed}
    return {
        (line["step"], key): value
        for line in journal(folder)
        for key, value in line.get("metrics", {}).items()
        if key not in timed
    }


def saved(folder: Path) -> dict[str, Any]:
    state = store.newest(folder / "checkpoints")
    assert state is not None
    return state
