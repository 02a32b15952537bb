"""Numbers and durations for people."""

from __future__ import annotations


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
