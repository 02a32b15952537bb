"""The runs and sweeps of a folder, as `semaim ls` shows them. Reads files only: neither SLURM nor MLflow is asked."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.config.naming import flatten
from semaim.core.files import read_json
from semaim.core.formatting import duration, plural, relative_to_cwd, size
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.sweeps.sweep import FILE, Sweep, swept

STATES = ("running", "requeued", "finished", "failed", "interrupted", "vanished", "not begun")
ORDERS = ("age", "name", "size", "metric")


@dataclass(frozen=True)
class Listed:
    """A run or a sweep.

    Attributes:
        path: its folder.
        state: of a run, as in status.json; of a sweep the numbers of its runs by state.
        states: the states that a filter finds it by.
        task: "pretrain", "knn", ...; "sweep".
        choices: what was chosen in each group; of a sweep, what it is swept over.
        options: of a run, its configuration with dotted keys.
        metric, value: the main metric of a finished run.
        changed: when it last changed, in seconds since 1970.
        bytes: size of the folder.
    """

    path: Path
    state: str
    states: tuple[str, ...]
    task: str
    choices: dict[str, str]
    options: dict[str, Any] = field(repr=False)
    metric: str | None
    value: float | None
    changed: float
    bytes: int


def rows(folder: Path) -> list[Listed]:
    """The runs and sweeps directly in a folder.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the run folders (runs_dir)")
    found = []
    for path in sorted(folder.iterdir()):
        if (path / FILE).is_file():
            found.append(_sweep(path))
        elif (path / "config.yaml").is_file():
            found.append(_run(path))
    return found


def run_state(folder: RunFolder) -> str:
    """The state of a run; a run whose process is gone without a word has vanished."""
    state = folder.status().get("state", "not begun")
    return "vanished" if state == "running" and not folder.is_locked() else str(state)


def _run(path: Path) -> Listed:
    folder = RunFolder(path)
    status, state = folder.status(), run_state(folder)
    config: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    starts = (read_json(path / "environment.json") or {"starts": [{}]})["starts"]
    choices = dict(starts[-1].get("choices", {}))
    named_after = [group for group in config.get("named_after", ()) if group != "task"]
    shown = {group: choices[group] for group in named_after if group in choices} | choices
    result = status.get("result", {}) if state == "finished" else {}
    metric = status.get("metric") if result else None
    task = choices.get("task", "?")
    return Listed(path, state, (state,), task, shown, flatten(config), metric, result.get(metric),
                  _changed(path), _bytes(path))  # fmt: skip


def _sweep(path: Path) -> Listed:
    sweep = Sweep.load(path)
    places = [place for point in sweep.points for place in (point.run_dir, *point.then)]
    states = Counter(run_state(RunFolder(Path(place))) for place in places)
    text = ", ".join(f"{number} {state}" for state, number in states.most_common())
    axes = {option: ",".join(values) for option, values in swept(sweep).items()}
    return Listed(path, text, tuple(states), "sweep", axes, {}, None, None, _changed(path), _bytes(path))


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _changed(path: Path) -> float:
    marks = [path / name for name in ("status.json", "metrics.jsonl", FILE, "config.yaml")]
    return max(file.stat().st_mtime for file in marks if file.is_file())


def select(listed: Sequence[Listed], states: Sequence[str], tasks: Sequence[str], where: Sequence[str]) -> list[Listed]:
    """Those of some states, of some tasks, and with all of some choices or options.

    Raises:
        UserError: for a condition that is not option=value, or an option that no run has.
    """
    found = [each for each in listed if not states or set(states) & set(each.states)]
    found = [each for each in found if not tasks or each.task in tasks]
    for condition in where:
        option, separator, value = condition.partition("=")
        if not separator or not option:
            raise UserError(f"--where {condition} must be OPTION=VALUE, such as --where permutation=raster")
        if listed and not any(option in each.choices or option in each.options for each in listed):
            known = sorted({key for each in listed for key in each.choices})
            raise UserError(f"--where {condition}: no run here has an option {option}; choices are {', '.join(known)}")
        found = [each for each in found if _has(each, option, value)]
    return found


def _has(each: Listed, option: str, value: str) -> bool:
    wanted = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index,call-overload]
    if option in each.choices and (each.choices[option] == value or value in each.choices[option].split(",")):
        return True
    return option in each.options and each.options[option] == wanted


def ordered(listed: Sequence[Listed], by: str) -> list[Listed]:
    """By name; newest, largest or best first. Runs without a value come last."""
    if by == "name":
        return sorted(listed, key=lambda each: each.path.name)
    if by == "metric":
        with_value = sorted(
            (each for each in listed if each.value is not None), key=lambda e: (e.metric, -(e.value or 0))
        )
        return [*with_value, *(each for each in listed if each.value is None)]
    return sorted(listed, key=lambda each: each.bytes if by == "size" else each.changed, reverse=True)


def table(listed: Sequence[Listed], folder: Path, total: int) -> str:
    """For people: a line each, the folder last, so that it can be copied."""
    if not listed:
        which = "no run or sweep" if not total else f"none of {plural(total, 'run or sweep', '')}"
        return f"{which} in {folder}" + (" fits these conditions" if total else "")
    lines = [("STATE", "METRIC", "AGE", "SIZE", "TASK", "CHOICES", "FOLDER")]
    for each in listed:
        metric = "" if each.value is None else f"{each.metric} {each.value:.4g}"
        choices = " ".join(value if each.task != "sweep" else f"{key}={value}" for key, value in each.choices.items()
                           if key != "task" and (each.task == "sweep" or key in _SHOWN))  # fmt: skip
        age = duration(max(0.0, time.time() - each.changed))
        lines.append((each.state, metric, age, size(each.bytes), each.task, choices, str(relative_to_cwd(each.path))))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    text = "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    )
    shown = f"{len(listed)} of {total}" if len(listed) < total else str(total)
    return f"{text}\n{shown} in {folder}, {size(sum(each.bytes for each in listed))}"


_SHOWN = ("data", "model", "permutation", "target")


def as_json(listed: Sequence[Listed]) -> str:
    """For programs: a list of objects."""
    keys = ("path", "state", "task", "choices", "metric", "value", "changed", "bytes")
    found = [{key: value for key, value in asdict(each).items() if key in keys} for each in listed]
    return json.dumps(found, indent=2, default=str)
