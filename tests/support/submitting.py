"""Sweeps that are submitted to the commands of fake_slurm.py."""

from __future__ import annotations

from pathlib import Path

from semaim.sweeps.sweep import Sweep
from support.commands import SMALL

SWEEP = ("-m", "hydra/launcher=slurm_cpu", "sweep.wait=false", "sweep.check=false", *SMALL)


def sweep(tmp_path: Path, name: str) -> Sweep:
    return Sweep.load(tmp_path / "runs" / name)
