"""The folder of what can be computed again: compiled kernels, measured speeds, listings of folders."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str = "") -> Path | None:
    """A subfolder of $XDG_CACHE_HOME/semaim (~/.cache/semaim), made if missing; None if that is not possible."""
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = given if given.is_absolute() else Path.home() / ".cache"  # a relative one does not count
        folder = home / "semaim" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or there is no home folder
        return None
    return folder
