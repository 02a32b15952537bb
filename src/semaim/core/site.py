"""The folder of a site's, or a user's, own configuration: `site.yaml`, and groups such as `data/photos.yaml`."""

from __future__ import annotations

import os
from pathlib import Path


def site_folder() -> Path | None:
    """The folder that SEMAIM_SITE names, by default ~/.config/semaim; None if there is none."""
    folder = Path(os.environ.get("SEMAIM_SITE", "~/.config/semaim")).expanduser().absolute()
    return folder if folder.is_dir() else None
