"""Names of runs in MLflow: short, beginning with what differs. The tag `run_folder` has the name of the folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from semaim.config.naming import flatten, other_overrides
from semaim.config.run_spec import RunSpec
from semaim.config.source_run import run_folder_of
from semaim.core.formatting import scientific
from semaim.errors import UserError
from semaim.runs.folder import RunFolder

SEPARATOR = " · "
MAX_VALUE, MAX_NAME = 40, 120  # characters
PRETRAIN = "pretrain"


def run_name(
    choices: Mapping[str, str],
    data: str,
    options: Mapping[str, str],
    swept: Collection[str],
    encoder: str | None = None,
) -> str:
    """The name of a run.

    Args:
        choices: its choice in each group.
        data: name of its data.
        options: its options that differ from the defaults and, of an evaluation, from those of its encoder's run.
        swept: the options that differ between the runs of its sweep; none for a run of its own.
        encoder: name of the encoder that it evaluates.
    """
    task = choices["task"]
    if "run_name" in options:
        return options["run_name"]
    shown = {key: options.get(key, choices.get(key, "")) for key in swept or options}
    head = [encoder] if encoder else []
    if task == PRETRAIN and not swept:
        head = [f"{PRETRAIN} {data} {choices['permutation']}"]
    elif task != PRETRAIN:
        head = [task, *head]
    in_head = (
        ("task", "checkpoint") if task != PRETRAIN else () if swept else ("task", "data", "data.root", "permutation")
    )
    parts = [*head, *(setting(key, value, choices) for key, value in shown.items() if key not in in_head)]
    return _joined(part for part in parts if part) or task


def sweep_name(swept: Sequence[str], count: int, same: Mapping[str, str], choices: Mapping[str, str]) -> str:
    """The name of a sweep: the swept options, the number of runs, and the options that all of them share.

    Args:
        swept: the options that differ between its runs.
        count: number of its runs.
        same: the options that its runs share.
        choices: the choice in each group, of any of its runs.
    """
    axes = " × ".join(key.rsplit(".", 1)[-1] for key in swept)  # noqa: RUF001 - the usual sign
    settings = [setting(key, value, choices) for key, value in same.items() if key not in ("run_name", "checkpoint")]
    return _joined([f"{axes} ({count} runs)".strip(), *settings])


def setting(key: str, value: str, choices: Mapping[str, str]) -> str:
    """An option and its value in few words: the choice of a group alone, of a path its last part."""
    plain = value.strip("'\"")
    if re.fullmatch(r"\d{7,}\.0", plain):  # as a sweep of Hydra writes 1e13
        plain = scientific(float(plain))
    text = (PurePath(plain).name if "/" in plain and "[" not in plain else plain)[:MAX_VALUE]
    return text if key in choices or key == "experiment" else f"{key.rsplit('.', 1)[-1]} {text}"


def affects_model(option: str) -> bool:
    """Whether an option of a pretraining changes its model: those of the task and the evaluators only measure."""
    return not option.startswith(("task.", "evaluators="))


def data_name(choice: str, config: Mapping[str, Any]) -> str:
    """Name of the data: the folder of data=folder and data=shards, else the choice."""
    root = config.get("root")
    return PurePath(root).name or choice if choice in ("folder", "shards") and root else choice


def _joined(parts: Iterable[str]) -> str:
    """The parts as far as they fit into a name."""
    name = ""
    for part in parts:
        longer = SEPARATOR.join([name, part] if name else [part])
        if len(longer) > MAX_NAME:
            return f"{longer[: MAX_NAME - 1]}…" if not name else f"{name} …"
        name = longer
    return name


def name_of(spec: RunSpec) -> str:
    """The name of a run, from its sweep's and its encoder's folders as far as they can be read."""
    choices, config = spec.choices, spec.config
    relevant = other_overrides((), spec.overrides)
    options = {key: value for key, _, value in (each.partition("=") for each in relevant)}
    if any(each.startswith("run_name=") for each in spec.overrides):
        options["run_name"] = config["run_name"]
    data = data_name(choices.get("data", ""), config.get("data") or {})
    checkpoints = config.get("checkpoint") or []
    names = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if choices["task"] == PRETRAIN:
        options = {key: value for key, value in options.items() if affects_model(f"{key}=")}
    if choices["task"] == PRETRAIN or not names:
        return run_name(choices, data, options, _swept(config))
    encoder = run_folder_of(Path(names[0]).expanduser())
    if encoder is not None:
        options = _without_inherited(options, spec, RunFolder(encoder))
    elif "data" in choices:
        options = {"data": choices["data"]} | options
    short = ", ".join(dict.fromkeys(_encoder_name(name) for name in names))
    return run_name(choices, data, options, _swept(config), short)


def encodable(text: str) -> str:
    r"""The text with the bytes of a file name that are no UTF-8 as `\udc..`: MLflow stores UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def stored_name(folder: RunFolder) -> str:
    """The name that a run was given at its first start; of an earlier version, that of its folder."""
    return next((start["title"] for start in folder.starts() if "title" in start), folder.path.name)


def _swept(config: Mapping[str, Any]) -> list[str]:
    """The swept options of the sweep that a run is in."""
    with suppress(UserError):
        if (parent := config.get("parent_run")) is not None:
            return RunFolder(Path(parent)).last_start().get("swept", [])
    return []


def _encoder_name(checkpoint: str) -> str:
    path = Path(checkpoint).expanduser()
    with suppress(UserError):
        if (folder := run_folder_of(path)) is not None:
            return stored_name(RunFolder(folder)).removeprefix(f"{PRETRAIN} ")
    return path.name if path.exists() else checkpoint


def _without_inherited(options: Mapping[str, str], spec: RunSpec, encoder: RunFolder) -> dict[str, str]:
    """The options without those that the run of the encoder has as well."""
    try:
        theirs, now = flatten(encoder.config()), flatten(spec.config)
        choices = encoder.last_start().get("choices", {})
    except UserError:
        return dict(options)
    absent = object()
    return {
        key: value
        for key, value in options.items()
        if choices.get(key, absent) != spec.choices.get(key)
        and not (key in now and now[key] == theirs.get(key, absent))
    }
