"""Numbers, durations, paths and commands as a person reads and types them."""

from __future__ import annotations

import shlex
from pathlib import Path


def duration(seconds: float) -> str:
    """Seconds for people: 48 s, 5 min 03 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count(number: float, unit: str = "") -> str:
    """A large number for people: 5.42 M, 251 G, 1.3 T."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {letter}{unit}"
    return f"{number:.3g} {unit}".strip()


def plural(number: int, noun: str, ending: str = "s") -> str:
    """A number of things: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else ending}"


def size(number_of_bytes: float) -> str:
    """Bytes for people: 5.42 MB, 251 GB."""
    return count(number_of_bytes, "B")


def program(verb: str, *words: str | Path) -> str:
    """A command of the `semaim` program, quoted so that it can be pasted into a shell."""
    return shlex.join(["semaim", verb, *map(str, words)])


def from_here(path: Path) -> Path:
    """A path as a person in the working directory would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
