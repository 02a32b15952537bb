"""The runs and sweeps of a folder, for `semaim ls`. Reads only files, without SLURM or MLflow."""

from __future__ import annotations

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.config.naming import flatten
from semaim.core.formatting import count, duration, plural, relative_to_cwd
from semaim.core.headline import digits, headline, lower_is_better
from semaim.core.tables import text_table
from semaim.errors import DamagedFile, NotReadable, UserError
from semaim.runs.folder import RunFolder
from semaim.runs.status import RunState
from semaim.sweeps.comparison import comparison
from semaim.sweeps.states import PointState, with_results
from semaim.sweeps.sweep import FILE, LINK, Sweep, swept

_SHOWN_GROUPS = ("data", "model", "permutation", "target")


@dataclass(frozen=True)
class Entry:
    """A run or a sweep.

    Attributes:
        path: its folder.
        state: of a run; of a sweep, the counts of its runs by state; "damaged: <file>".
        states: the states that filters match.
        task: "pretrain", "knn", ...; "sweep".
        choices: the choice in each group; of a sweep, its swept options.
        options: of a run, its configuration with dotted keys.
        metric, value: the headline metric (see `semaim.core.headline`) of a finished run, or the best of a sweep.
        changed: time of the last change, in seconds since 1970.
        bytes: size of the folder.
    """

    path: Path
    state: str
    states: tuple[RunState, ...]
    task: str
    choices: dict[str, str]
    options: dict[str, Any] = field(repr=False)
    metric: str | None
    value: float | None
    changed: float
    bytes: int


def list_entries(folder: Path) -> list[Entry]:
    """The runs and sweeps directly in a folder.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the run folders (runs_dir)")
    entries = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(LINK)):
        try:
            if (path / FILE).is_file():
                entries.append(_sweep(path))
            elif any((path / name).exists() for name in ("config.yaml", "status.json")):
                entries.append(_run(path))
        except (NotReadable, PermissionError):  # the folder of another user
            entries.append(_unread(path, "unknown", "Permission denied"))
        except DamagedFile as error:
            entries.append(_unread(path, "damaged", error.path.name))
    return entries


def _unread(path: Path, state: RunState, why: str) -> Entry:
    return Entry(path, f"{state}: {why}", (state,), "?", {}, {}, None, None, _changed(path), folder_bytes(path))


def _run(path: Path) -> Entry:
    folder = RunFolder(path)
    status, state = folder.status(), folder.state()
    config = folder.config()
    choices = dict(folder.last_start().get("choices", {}))
    named_after = [group for group in config.get("named_after", ()) if group != "task"]
    ordered_choices = {group: choices[group] for group in named_after if group in choices} | choices
    metric, value = headline(status["metric"], status["result"]) if state == "finished" else (None, None)
    task = choices.get("task", "?")
    return Entry(path, state, (state,), task, ordered_choices, flatten(config), metric, value,
                  _changed(path), folder_bytes(path))  # fmt: skip


def _sweep(path: Path) -> Entry:
    sweep = Sweep.load(path)
    states = Counter(RunFolder(run_dir).state() for run_dir in sweep.run_dirs)
    text = ", ".join(f"{number} {state}" for state, number in states.most_common())
    axes = {option: ",".join(values) for option, values in swept(sweep).items()}
    metric, value = _best(sweep)
    return Entry(path, text, tuple(states), "sweep", axes, {}, metric, value, _changed(path), folder_bytes(path))


def _best(sweep: Sweep) -> tuple[str, float] | tuple[None, None]:
    """The headline metric of a sweep, and its best mean over seeds."""
    try:
        found = comparison(sweep, [with_results(PointState("new"), point) for point in sweep.points])
    except (DamagedFile, PermissionError):
        return None, None
    if found is None or found.metric is None or found.best is None:
        return None, None
    return found.metric, found.best.scores[found.metric].mean


def folder_bytes(path: Path) -> int:
    """Size of all files below a folder, as far as they can be seen."""
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(status.st_size for each in paths if (status := _lstat(each)) and stat.S_ISREG(status.st_mode))


def _changed(path: Path) -> float:
    files = [path / name for name in ("status.json", "metrics.jsonl", FILE, "config.yaml")]
    return max((status.st_mtime for file in files if (status := _lstat(file))), default=path.stat().st_mtime)


def _lstat(path: str | Path) -> os.stat_result | None:
    """As `os.lstat`; None for a file that is gone meanwhile, or not to be seen by this user."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def select(entries: Sequence[Entry], states: Sequence[str], tasks: Sequence[str], where: Sequence[str]) -> list[Entry]:
    """Entries with one of the states, one of the tasks, and all conditions on choices or options.

    Raises:
        UserError: for a condition that is not option=value, or an option that no run has.
    """
    selected = [entry for entry in entries if not states or set(states) & set(entry.states)]
    selected = [entry for entry in selected if not tasks or entry.task in tasks]
    for condition in where:
        option, separator, value = condition.partition("=")
        if not separator or not option:
            raise UserError(f"--where {condition} must be OPTION=VALUE, such as --where permutation=raster")
        if entries and not any(option in entry.choices or option in entry.options for entry in entries):
            known = sorted({key for entry in entries for key in entry.choices})
            raise UserError(f"--where {condition}: no run here has an option {option}; choices are {', '.join(known)}")
        selected = [entry for entry in selected if _matches(entry, option, value)]
    return selected


def _matches(entry: Entry, option: str, value: str) -> bool:
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index,call-overload]
    if option in entry.choices and (entry.choices[option] == value or value in entry.choices[option].split(",")):
        return True
    return option in entry.options and entry.options[option] == parsed


def ordered(entries: Sequence[Entry], by: str) -> list[Entry]:
    """Sort by name, or newest, largest or best first. Runs without a value come last."""
    keys: dict[str, Callable[[Entry], Any]] = {
        "age": lambda entry: -entry.changed,
        "name": lambda entry: entry.path.name,
        "size": lambda entry: -entry.bytes,
        "metric": lambda entry: (entry.value is None, entry.metric, _cost(entry)),
    }
    return sorted(entries, key=keys[by])


def _metric_text(entry: Entry) -> str:
    if entry.metric is None or entry.value is None:
        return ""
    return f"{'best ' * (entry.task == 'sweep')}{entry.metric} {digits(entry.metric, entry.value)}"


def _cost(entry: Entry) -> float:
    """Smaller for a better value."""
    value = entry.value or 0.0
    return value if lower_is_better(entry.metric or "") else -value


def table(entries: Sequence[Entry], folder: Path, total: int) -> str:
    """A text table: a line for each entry, the folder in the last column."""
    if not entries:
        which = "no run or sweep" if not total else f"none of {plural(total, 'run or sweep', '')}"
        return f"{which} in {folder}" + (" fits these conditions" if total else "")
    lines = [("STATE", "METRIC", "AGE", "SIZE", "TASK", "CHOICES", "FOLDER")]
    for entry in entries:
        metric = _metric_text(entry)
        choices = " ".join(value if entry.task != "sweep" else f"{key}={value}" for key, value in entry.choices.items()
                           if key != "task" and (entry.task == "sweep" or key in _SHOWN_GROUPS))  # fmt: skip
        age = duration(max(0.0, time.time() - entry.changed))
        path = str(relative_to_cwd(entry.path))
        lines.append((entry.state, metric, age, count(entry.bytes, "B"), entry.task, choices, path))
    shown = f"{len(entries)} of {total}" if len(entries) < total else str(total)
    return f"{text_table(lines)}\n{shown} in {folder}, {count(sum(entry.bytes for entry in entries), 'B')}"


def as_json(entries: Sequence[Entry]) -> str:
    """A JSON list of objects."""
    keys = ("path", "state", "task", "choices", "metric", "value", "changed", "bytes")
    objects = [{key: getattr(entry, key) for key in keys} for entry in entries]
    return json.dumps(objects, indent=2, default=str)
