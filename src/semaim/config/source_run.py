"""The run that made a checkpoint, as far as evaluations need it: its data as options of a command line.

Nothing that a run folder says is executed. Values become options, which are checked as if they were typed. A class
(`_target_`) comes from the configuration files of semaim or of a folder of this user, never from a run folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.config.compose import choices, folder_path, options
from semaim.config.naming import flatten
from semaim.config.old_versions import upgraded
from semaim.core.files import adapter, first_problem, no_pipe, read_json
from semaim.core.formatting import quoted, relative_to_cwd
from semaim.errors import DamagedFile, NotReadable, UserError

WORDS = ("null", "true", "false", "nan", "inf")  # that are no text without quotes
PATHS = ("data.root", "data.source.masks")
NOT_TAKEN = ("data.accept_changes",)  # a decision on one start of that run


class _Start(TypedDict, total=False):
    folder: str
    choices: dict[str, str]
    config_dirs: list[str]


class _Environment(TypedDict):
    starts: list[_Start]


class _Config(TypedDict, total=False):
    """What this program looks up in a stored configuration."""

    task: dict[str, Any]
    data: dict[str, Any]
    named_after: list[str]
    parent_run: str | None


@dataclass(frozen=True)
class SourceRun:
    """A run that made a checkpoint.

    Attributes:
        checkpoint: path of the checkpoint, in the run folder or the run folder itself.
        folder: its run folder.
        config: its configuration.
        chosen: its choice in each group.
        config_dirs: its additional configuration folders.
        cwd: the folder where it was started.
    """

    checkpoint: Path
    folder: Path
    config: Mapping[str, Any]
    chosen: Mapping[str, str]
    config_dirs: Sequence[str]
    cwd: Path

    @property
    def shown(self) -> str:
        """Its run folder, for messages."""
        return str(relative_to_cwd(self.folder))

    @property
    def choice(self) -> str | None:
        """Its choice of data; None if it has no data."""
        if not isinstance(self.config.get("data"), Mapping):
            return None
        return self.chosen.get("data")

    def folder_of_data(self, typed: Mapping[str, str]) -> list[str]:
        """The configuration folder with its choice of data, if the command line does not choose others.

        Raises:
            UserError: if it is gone, or may hold code that this user has not agreed to run.
        """
        if "data" in typed and typed["data"] != f"data={self.choice}":
            return []
        file = Path("data") / f"{self.choice}.yaml"
        named = f"{quoted(self.shown)} was trained on data={self.choice}"
        for folder in map(folder_path, self.config_dirs):
            if not (folder / file).is_file():
                continue
            if folder.resolve().is_relative_to(self.folder.resolve().parent):
                raise UserError(f"{named} of {quoted(folder)}, which lies beside it and may have come with it, so it "
                                f"is not used: if you trust it, add --config-dir {quoted(folder)}")  # fmt: skip
            if (folder / file).stat().st_uid not in (os.getuid(), 0):
                raise UserError(f"{named} of {quoted(folder)}, which is of another user and may name any code: if you "
                                f"trust it, add --config-dir {quoted(folder)}")  # fmt: skip
            return [f"file://{folder}"]
        where = " or ".join(quoted(folder_path(folder)) for folder in self.config_dirs)
        raise UserError(f"{named}, which is not among the data of semaim{where and f', nor in {where} any more'}: add "
                        f"--config-dir <folder that holds {file}>, or choose other data (data=...)")  # fmt: skip

    def data(self, typed: Mapping[str, str], folders: Sequence[str]) -> dict[str, str] | None:
        """Its data as options, by key; None if the command line chooses other data.

        Args:
            typed: the options of the command line, by key.
            folders: additional configuration folders.

        Raises:
            UserError: if the data cannot be told by options.
        """
        word = f"data={self.choice}"
        if self.choice is None or typed.get("data", word) != word:
            return None
        if self.choice not in choices("data", folders):
            raise UserError(f"{quoted(self.shown)} names data={self.choice!r}, which do not exist: choose data=...")
        found = {"data": word}
        for key, value in self._changes(word, typed, folders):
            if "data" in typed and key not in typed:  # the default, then
                return None
            found[key] = f"{key}={value_text(value)}"
        return found

    def _changes(self, word: str, typed: Mapping[str, str], folders: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """The options of the data that differ from the defaults of their choice, and their values."""
        config = options([word], folders).copy()
        OmegaConf.set_readonly(config, False)
        defaults = flatten({"data": OmegaConf.to_container(config.data)})
        now = flatten({"data": self.config["data"]})
        # Options that follow others come last, so that only what differs by itself is told.
        for key in sorted(now, key=lambda key: ("${" in str(defaults.get(key)), key.count("."))):
            value = self._absolute(key, now[key], typed) if key in PATHS else now[key]
            if key in NOT_TAKEN or (key in defaults and _value(config, key) == value):
                continue
            if key not in typed and "data" not in typed:
                if names_code(key):
                    raise UserError(f"{quoted(self.shown)} was trained with {key}={value}, which is not the one of "
                                    f"{word} now: choose data=..., or type this option if you trust it")  # fmt: skip
                if "${" in str(value):
                    raise UserError(f"{quoted(self.shown)} was trained with {key}={value}: give {key} a plain value")
            OmegaConf.update(config, key, value, force_add=True)
            yield key, value

    def _absolute(self, key: str, value: Any, typed: Mapping[str, str]) -> Any:
        """A path that is relative to the folder where the run was started, as seen from this one."""
        if not isinstance(value, str) or Path(value).is_absolute() or self.cwd == Path.cwd():
            return value
        if (path := self.cwd / value).exists():
            return str(path)
        if typed.keys() & {key, "data"} or "download" in (self.config["data"].get("source") or {}):
            return value
        raise UserError(f"{quoted(self.shown)} was trained with {key}={quoted(value)} in the folder "
                        f"{quoted(self.cwd)}, where it is not any more: give {key}=<where it is now>")  # fmt: skip


def names_code(key: str) -> bool:
    """Whether an option is for Hydra's instantiation, such as `data.source._target_`: its value may run any code."""
    return any(part.startswith("_") for part in key.split("."))


def run_folder_of(path: Path) -> Path | None:
    """The run folder that contains a checkpoint or is the checkpoint."""
    candidates = (path, path.parent, path.parent.parent)
    return next((candidate for candidate in candidates if (candidate / "environment.json").is_file()), None)


def source_run(checkpoint: Path) -> SourceRun | None:
    """The run that made a checkpoint; None if it is not in a run folder.

    Raises:
        DamagedFile: if a file of the run folder cannot be read.
    """
    path = Path(os.path.abspath(checkpoint))
    folder = run_folder_of(path)
    if folder is None or not (folder / "config.yaml").is_file():
        return None
    environment = read_json(folder / "environment.json", _Environment, "move it away, and name the data: data=...")
    start: _Start = environment["starts"][-1] if environment and environment["starts"] else {}
    config = stored_config(folder / "config.yaml", "restore it", upgraded)
    config_dirs, cwd = start.get("config_dirs", []), Path(start.get("folder", "."))
    return SourceRun(path, folder, config, start.get("choices", {}), config_dirs, cwd)


def stored_config(path: Path, remedy: str, convert: Callable[[Any], dict[str, Any]] = dict) -> dict[str, Any]:
    """Content of config.yaml of a run folder, in plain types, passed through `convert`.

    Raises:
        DamagedFile: if it cannot be read, of which NotReadable is a case; with this remedy.
    """
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(no_pipe(path)))
        adapter(_Config).validate_python(config, strict=True)
        if not config:
            raise ValueError("it is empty")
        return convert(config)
    except PermissionError as error:
        raise NotReadable(path) from error
    except Exception as error:  # the parser and `convert` raise many types
        reason = first_problem(error) if hasattr(error, "errors") else str(error).partition("\n")[0]
        raise DamagedFile(path, reason or type(error).__name__, remedy) from error


def value_text(value: Any) -> str:
    """A value in command-line syntax."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_./][\w./:-]*", value, re.ASCII) and value.lower() not in WORDS
        return value if plain else str(QuotedString(value, Quote.double).with_quotes())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {value_text(each)}' for key, each in value.items())}}}"
    return json.dumps(value)


def _value(config: DictConfig, key: str) -> Any:
    """The value of an option, in plain types; None if it must be given."""
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
