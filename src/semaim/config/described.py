"""The groups, choices and options of the configuration with their descriptions: the comments in its files.

A comment at the top of a file describes a choice, one beside or above a key an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from semaim.config.compose import CONF, LAUNCHERS_FILE, LOCAL_LAUNCHERS, choices, roots
from semaim.config.kinds import Kind
from semaim.config.schema import COMPONENTS, LAUNCHERS, TOP

# Keys that are not for the command line.
HIDDEN = re.compile(r"(^|\.)(_\w+|defaults|named_after|hydra)(\.|$)|^(recipe|run_dir)$").search


@dataclass(frozen=True)
class Option:
    """An option in a file: its value as written there, its comment, and what it must be."""

    value: str
    comment: str
    kind: Kind | None = None


@dataclass(frozen=True)
class Choice:
    """A choice of a group: its file (None if there is none), description, package, and options by their full names."""

    file: Path | None
    description: str
    options: dict[str, Option]


class CommentedFile:
    """A YAML file with its comments."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        self.lines = self.text.splitlines()
        self.root = yaml.compose(self.text) or yaml.MappingNode("", [])
        self.header = next((i for i, line in enumerate(self.lines) if not line.startswith("#")), len(self.lines))
        top = [line.removeprefix("#").removeprefix(" ") for line in self.lines[: self.header]]
        self.package = next((line.split()[1] for line in top if line.startswith("@package ")), None)
        self.description = "\n".join(line for line in top if not line.startswith("@package "))

    def comment(self, key: Any, value: Any) -> str:
        """The comment beside a key and its value, with the lines that continue it; else the one above."""
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = (key if is_block else value).end_mark
        beside = (
            re.match(r"[\s:}\]]*#\s*(.*)", self.lines[end.line][end.column :]) if end.line < len(self.lines) else None
        )
        if beside:
            column, found = self.lines[end.line].index("#", end.column), [beside[1]]
            for line in self.lines[end.line + 1 :]:
                if line.find("#") != column or line[:column].strip():
                    break
                found.append(line[column + 1 :].strip())
            return " ".join(found)
        above: list[str] = []
        for line in reversed(self.lines[self.header : key.start_mark.line]):
            if not line.strip().startswith("#") or line.find("#") != key.start_mark.column:
                break
            above.insert(0, line.strip("# "))
        return " ".join(above)

    def options(self, node: Any, package: str) -> Iterator[tuple[str, Option]]:
        """The options in a mapping."""
        for key, value in node.value:
            name = f"{package}.{key.value}".lstrip(".")
            if isinstance(value, yaml.MappingNode):
                inner = list(self.options(value, name))
                of_line = self.comment(key, value) if value.flow_style and len(inner) == 1 else ""
                yield from ((each, Option(option.value, option.comment or of_line)) for each, option in inner)
            else:
                text = self.text[value.start_mark.index : value.end_mark.index]
                yield name, Option(text or "null", self.comment(key, value))

    def defaults(self) -> Iterator[tuple[str, str, str]]:
        """The defaults list: group (empty for a file of the same group), choice and comment."""
        for item in next((value.value for key, value in self.root.value if key.value == "defaults"), ()):
            if isinstance(item, yaml.ScalarNode):
                yield "", item.value, ""
            for key, value in item.value if isinstance(item, yaml.MappingNode) else ():
                chosen = value.value if isinstance(value, yaml.ScalarNode) else [each.value for each in value.value]
                yield key.value, chosen if isinstance(chosen, str) else ",".join(chosen), self.comment(key, value)


def choice_of(group: str, name: str, folders: Sequence[str] = (), package: str | None = None) -> Choice:
    """A choice of a group, with the options of the files that it extends."""
    file = next((path for root in roots(folders) if (path := root / group / f"{name}.yaml").is_file()), None)
    if file is None:
        return _local_launcher(name) if group == "hydra/launcher" and name in LOCAL_LAUNCHERS else Choice(None, "", {})
    content = CommentedFile(file)
    package = package or content.package or group.replace("/", ".")
    package = "" if package == "_global_" else package
    inherited: dict[str, Option] = {}
    for other, chosen, _ in content.defaults():
        parent, _, place = (other or chosen).partition("@")
        if not other and chosen != "_self_":
            place = package if place in ("", "_here_") else place
            inherited |= choice_of(group, parent, folders, place or "_global_").options
        elif other and not other.startswith(("override ", "optional ", "/")):
            inherited |= choice_of(f"{group}/{parent}", chosen, folders, place).options
    own = {name: Option(each.value, each.comment or getattr(inherited.get(name), "comment", ""))
           for name, each in content.options(content.root, package)}  # fmt: skip
    options = inherited | own
    kinds = {name: _kind(name, options) for name in options}
    return Choice(file, content.description, {key: Option(each.value, each.comment, kinds[key])
                                              for key, each in options.items()})  # fmt: skip


def _local_launcher(name: str) -> Choice:
    content = CommentedFile(LAUNCHERS_FILE)
    description, options = next((content.comment(key, value), content.options(value, "hydra.launcher"))
                                for key, value in content.root.value if key.value == name)  # fmt: skip
    return Choice(LAUNCHERS_FILE, description, dict(options))


def _kind(name: str, options: dict[str, Option]) -> Kind | None:
    parent, _, key = name.rpartition(".")
    target = options.get(f"{parent}._target_", Option("", ""))
    declared: Any = TOP.get(parent, TOP) if parent in ("", "sweep") else COMPONENTS.get(target.value, {})
    kind = (LAUNCHERS if parent == "hydra.launcher" else declared).get(key)
    return kind if isinstance(kind, Kind) else None


def is_shown(name: str, option: Option) -> bool:
    """Whether an option is one for the command line: not a reference to a group, nor an unexplained one to an option."""
    if HIDDEN(name.removeprefix("hydra.launcher.")) or re.fullmatch(r"\$\{\w+\}", option.value):
        return False
    return bool(option.comment) or not re.fullmatch(r"\$\{[\w.]+\}", option.value)


def groups() -> dict[str, tuple[str, str]]:
    """The groups: default choices, separated by commas, and description."""
    found = {}
    for file in ("config.yaml", "task/pretrain.yaml"):
        for key, chosen, comment in CommentedFile(CONF / file).defaults():
            group = key.removeprefix("override ").lstrip("/")
            if group and (CONF / group).is_dir() and comment:
                found[group] = (chosen, comment)
    found["experiment"] = ("", "complete recipes, which are added: +experiment=...")
    return dict(sorted(found.items(), key=lambda item: item[0] != "task"))


def all_options(folders: Sequence[str] = ()) -> dict[str, dict[str, Option]]:
    """Every option for the command line, of each choice that has it; the default choices come first.

    Args:
        folders: additional configuration folders.

    Returns:
        by name of the option and choice (such as data=digits, or nothing for an option of all runs).
    """
    top = CommentedFile(CONF / "config.yaml")
    plain = dict(top.options(top.root, ""))
    found = {name: {"": Option(each.value, each.comment, _kind(name, plain))} for name, each in plain.items()}
    for group, (default, _) in groups().items():
        names = choices(group, folders) if group != "experiment" else []
        for name in sorted(names, key=lambda name: name not in default.split(",")):
            for key, option in choice_of(group, name, folders).options.items():
                found.setdefault(key, {})[f"{group}={name}"] = option
    shown = {name: {choice: each for choice, each in of.items() if is_shown(name, each)} for name, of in found.items()}
    return {name: of for name, of in shown.items() if of}
