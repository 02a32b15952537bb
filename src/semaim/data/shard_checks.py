"""What a folder of shards holds: a summary for the user, and the comparison of all checksums."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from semaim.core.files import sha256
from semaim.core.formatting import count, duration, plural, quoted
from semaim.core.terminal import StatusLine
from semaim.data.shards import Index, Manifest, PartName, command_of, missing, read_manifest, shards_of
from semaim.errors import UserError


@dataclass(frozen=True)
class Summary:
    """What a folder of shards holds: its images, shards and bytes, and whether this command wrote any of them."""

    images: Mapping[PartName, int]
    shards: int
    bytes: int
    new: bool


def summary_of(manifest: Manifest, new: bool) -> Summary:
    """The summary of a manifest; `new`: whether this command wrote any shard."""
    shards, images = shards_of(manifest), {name: part["images"] for name, part in manifest["parts"].items()}
    return Summary(images, len(shards), sum(shard["bytes"] for shard in shards), new)


class Progress:
    """The status line of writing or reading images.

    Args:
        what: is counted.
        total, done: their number, and how many were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.before, self.done, self.bytes = what, total, done, 0, 0
        self.line = StatusLine(True, every=30)
        self.started = self.told = time.monotonic()

    def add(self, size: int) -> None:
        """Count one, with its size in bytes; the line is updated every second."""
        self.done, self.bytes = self.done + 1, self.bytes + size
        left = self.total - self.before - self.done
        last = left == 0 and self.told > self.started  # else no line was shown, which the next one would follow
        if (now := time.monotonic()) - self.told < 1 and not last:
            return
        self.told, seconds = now, now - self.started
        self.line.update(
            f"{self.total - left} of {self.total} {self.what}, {count(self.bytes / seconds, 'B')}/s, "
            f"{duration(left * seconds / self.done)} left",
            last,
        )


def verify(out: Path) -> Summary:
    """Read all shards of a folder and compare their checksums.

    Raises:
        UserError: if some are damaged or missing; the message names them.
    """
    manifest = read_manifest(out)
    shards = shards_of(manifest)
    problems, progress = list[str](), Progress("shards read", len(shards))
    for shard in shards:
        path = out / shard["file"]
        if not (found := missing(out, [shard])) and sha256(path) != shard["sha256"]:
            found = [f"{quoted(path)} is damaged: its SHA-256 is not the one that was written"]
        problems += found
        progress.add(shard["bytes"])
    for name, part in manifest["parts"].items():
        Index.read(out / f"{name}.npz", part["index_sha256"])
    if problems:
        raise UserError(
            "\n".join([f"{len(problems)} of {plural(len(shards), 'shard')} cannot be used:", *problems])
            + f"\nDelete what is damaged; this writes what is missing: {command_of(manifest, out)}"
        )
    return summary_of(manifest, new=False)
