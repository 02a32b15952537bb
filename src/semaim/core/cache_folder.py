"""The folder of what can be computed again: compiled kernels, measured speeds, listings of folders."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """A subfolder of $XDG_CACHE_HOME/semaim (~/.cache/semaim), made if missing; None if it cannot be written."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "semaim" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or not writable
        return None
    return folder if os.access(folder, os.W_OK) else None
