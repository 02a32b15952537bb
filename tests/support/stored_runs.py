"""Runs of version 0.1.0: a pretraining and a fine-tuning, each stopped after two of four steps."""

from __future__ import annotations

import tarfile
from pathlib import Path

from support.paths import TESTS


def unpack(folder: Path) -> Path:
    """Put the run folders `runs/pretraining` and `runs/finetuning` into a folder; returns it."""
    with tarfile.open(TESTS / "golden" / "runs_0.1.0.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder
