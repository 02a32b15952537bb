"""Human-readable numbers, durations, paths and commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

UVX_CACHE = "archive-v0"  # the folder of uv's cache with the environments that uvx makes


def duration(seconds: float) -> str:
    """Format a duration in seconds: 48 s, 5 min 03 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count(value: float, unit: str = "") -> str:
    """Format a large number with an SI prefix: 5.42 M, 251 GB, 1.3 T."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def scientific(value: float) -> str:
    """Format a large number as it is typed: 1e18, 2.5e15."""
    digits, exponent = f"{value:.6e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def spent_of(spent: float, in_all: float) -> str:
    """Format what is spent of a sum: 0.0121 of 0.2, 1234 of 1800."""
    return " of ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in (spent, in_all))


def plural(quantity: int, noun: str, ending: str = "s") -> str:
    """Format a quantity of a noun: 1 run, 2 runs."""
    return f"{quantity} {noun}{'' if quantity == 1 else ending}"


def quoted(name: str | Path) -> str:
    """A file name for messages: quoted if it holds a line break, a control character or undecoded bytes."""
    return text if (text := str(name)).isprintable() else repr(text)


def program(verb: str, *words: str | Path) -> str:
    """A command of the `semaim` program, quoted for a shell."""
    return command("semaim", verb, *words)


def command(name: str, *words: str | Path) -> str:
    """A command of a program of this environment, quoted for the shell of the user.

    It begins with the interpreter if the shell does not find the program: in an environment that is not activated, or
    that `uvx` or `pipx run` made.
    """
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    own = str(Path(sys.executable).parent)
    if UVX_CACHE in Path(own).parts:  # uvx puts this folder on the path of the program, but not of the shell
        path = [place for place in path if place != own]
    found = shutil.which(name, path=os.pathsep.join(path))
    return shlex.join([*([name] if found else [sys.executable, "-m", name]), *map(str, words)])


SECRET = r"\w*(?:pass|pwd|token|secret|credential|api_?-?key|access_?-?key)\w*"  # a name of a parameter in an address
PASSWORD_IN_ADDRESS = re.compile(rf"(://)[^/\s@]*:[^/\s@]*(?=@)|([?&]{SECRET}=)[^&\s'\"]+", re.IGNORECASE)


def printable(text: str, keep: str = "") -> str:
    r"""The text for a line of output: `\n`, `\x1b` and bytes that are no UTF-8 (`\udcff`) are written out.

    So a file name can neither forge a line nor control the terminal. Passwords in addresses become `***`.

    Args:
        text: any text.
        keep: control characters that are not from names: line breaks of a table.
    """
    if "://" in text:
        text = PASSWORD_IN_ADDRESS.sub(r"\1\2***", text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


def relative_to_cwd(path: Path) -> Path:
    """The path relative to the working directory if it is inside it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def result_lines(result: Mapping[str, float]) -> list[str]:
    """A line for each result of a run; `<name>_std` is the standard deviation of `<name>`."""
    width, lines = max(map(len, result), default=0), []
    for name, value in result.items():
        if name.removesuffix("_std") in result.keys() - {name}:
            continue
        deviation = f" ± {result[f'{name}_std']:.2f}" if f"{name}_std" in result else ""
        digits = "d" if isinstance(value, int) else ".2f" if abs(value) >= 1 else ".4g"
        lines.append(f"  {name:<{width}}  {value:{digits}}{deviation}")
    return lines
