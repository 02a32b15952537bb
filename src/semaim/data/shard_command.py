"""The command line of `semaim shard`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from semaim.config.compose import quoted_home
from semaim.config.naming import key_of
from semaim.config.run_spec import compose_run_spec
from semaim.config.source_run import value_text
from semaim.core.formatting import count, duration, plural, program, quoted
from semaim.data.image_sets import FileImages, Splits
from semaim.data.shard_checks import Summary, verify
from semaim.data.shard_writing import write_shards
from semaim.data.shards import PartName, is_sharded
from semaim.data.sources import image_folders
from semaim.errors import Interrupted, UserError

OWN = ("out", "shard_size")
SHARD_SIZE = "1GB"
UNITS: Mapping[str, int] = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SMALLEST = 10**5  # bytes


def shard(words: Sequence[str], config_dir: Path | None = None, verify_only: bool = False) -> str:
    """Write the images of a data source to shards, or verify those that were written.

    Args:
        words: out=<folder>, shard_size=<size>, and the options of the data.
        config_dir: an additional configuration folder.
        verify_only: only compare the checksums of the shards in out=.

    Returns:
        what to tell the user.

    Raises:
        UserError: for an option that does not fit, images that are no files, and as `write_shards` and `verify`.
        hydra.errors.HydraException: for a mistake in the options of the data.
    """
    own = dict(word.split("=", 1) for word in words if key_of(word) in OWN and "=" in word)
    others = [word for word in words if key_of(word) not in OWN]
    started = time.monotonic()
    if not own.get("out"):
        raise UserError("semaim shard needs out=<folder>, a new or empty folder for the shards")
    out = Path(_plain(own["out"])).expanduser()
    if verify_only:
        if unused := [word for word in words if key_of(word) != "out"]:
            raise UserError(f"{unused[0]} has no effect with --verify, which reads the shards in out= alone")
        if not is_sharded(out):
            raise UserError(f"out={quoted(out)} holds no shards to verify")
        return f"{_content(verify(out))}: all checksums are correct"
    if foreign := [word for word in others if key_of(word).split(".")[0].lstrip("+") not in ("data", "experiment")]:
        raise UserError(f"{foreign[0]} is no option of semaim shard, which takes out=, shard_size= and those of the "
                        f"data (data=..., data.root=...)")  # fmt: skip
    shard_bytes = _bytes(_plain(own.get("shard_size", SHARD_SIZE)))
    if not {"data", "experiment"} & {key_of(word).lstrip("+") for word in others}:
        others.append("data=folder")
    folders = [] if config_dir is None else [f"file://{config_dir.absolute()}"]
    spec = compose_run_spec(quoted_home(others), folders)
    choice, cfg = spec.choices["data"], spec.cfg.data
    source = instantiate(cfg.source, _convert_="all")
    parts, classes = _images(choice, cfg, source)
    try:
        summary = write_shards(parts, classes, choice, os.path.abspath(cfg.root), out, shard_bytes)
    except KeyboardInterrupt:
        raise Interrupted("stopped by Ctrl-C: complete shards are kept") from None
    taken = f" in {duration(time.monotonic() - started)}" if summary.new else "; they were complete before"
    reads_shards = source.func is image_folders
    use = program("run", f"data={choice if reads_shards else 'shards'}", f"data.root={value_text(str(out))}")
    return f"{_content(summary)}{taken}\nto use them: {use}"


def _images(choice: str, cfg: DictConfig, source: partial[Splits]) -> tuple[dict[PartName, FileImages], Sequence[str]]:
    """The parts of a data source, and the names of the classes; raises UserError if they are no plain image files."""
    if cfg.root is None or cfg.source.get("download") is not None:
        raise UserError(f"data={choice} has no image files, which alone can be written to shards: choose data=folder "
                        f"data.root=<images> or data=imagenet data.root=<images>")  # fmt: skip
    if cfg.val_fraction is not None:
        raise UserError(f"data.val_fraction={cfg.val_fraction} is for runs: shards hold all images, and a run with "
                        f"data.root=<shards> can hold out a share of them")  # fmt: skip
    if Path(cfg.root).is_dir() and is_sharded(Path(cfg.root)):
        raise UserError(f"data.root={quoted(cfg.root)} holds shards already: give the folder of the images")
    splits = source(cfg.root)
    found: Mapping[PartName, object] = {"train": splits.train, "val": splits.val}
    parts = {name: images for name, images in found.items() if isinstance(images, FileImages)}
    if len(parts) < 1 + (splits.val is not None) or splits.labelled not in (None, splits.train):
        raise UserError(f"data={choice} are not the files of one folder, which alone can be written to shards")
    if any(images.masks is not None for images in parts.values()):
        raise UserError("shards hold no masks: leave data.source.masks out, or train on the folder")
    return parts, splits.classes


def _plain(value: str) -> str:
    """A value without the quotes that Hydra's options need for spaces and commas."""
    quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quotes else value


def _bytes(size: str) -> int:
    """A size such as 500MB or 1.5 GB in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", size, re.IGNORECASE)
    value = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if value < SMALLEST:
        raise UserError(f"shard_size={size}: it must be a size of 100kB or more, such as 500MB or 1GB")
    return value


def _content(summary: Summary) -> str:
    """Images, shards and size of a folder."""
    train, val = summary.images["train"], summary.images.get("val")
    held_out = "" if val is None else f" and {val} held-out"
    images = (
        f"{train}{' training' if val is not None else ''}{held_out} {'image' if train + (val or 0) == 1 else 'images'}"
    )
    return f"{images} in {plural(summary.shards, 'shard')}, {count(summary.bytes, 'B')}"
