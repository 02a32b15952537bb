"""The folder of a site's, or a user's, own configuration: `site.yaml`, and groups such as `data/photos.yaml`."""

from __future__ import annotations

import os
from pathlib import Path

from semaim.core.formatting import quoted
from semaim.errors import UserError

SETTINGS = "site.yaml"  # the file that replaces the packaged one


def site_folder() -> Path | None:
    """The folder that SEMAIM_SITE names, by default ~/.config/semaim; None if there is none."""
    folder = Path(os.environ.get("SEMAIM_SITE", "~/.config/semaim")).expanduser().absolute()
    return folder if folder.is_dir() else None


def refuse_taken_names(folder: Path, conf: Path) -> None:
    """Raise UserError if a file of the folder would replace one of semaim's, also for choices that extend that one.

    Args:
        folder: of the site.
        conf: semaim's configuration.
    """
    for file in sorted(each for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml") for each in folder.glob(pattern)):
        name = file.relative_to(folder)
        if str(name) != SETTINGS and (conf / name).is_file():
            raise UserError(f"{quoted(file)}: semaim has a file {name} of its own, rename yours")
