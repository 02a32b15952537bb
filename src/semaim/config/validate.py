"""Validation of a composed configuration: unknown options, wrong values, and options that cannot be combined."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from semaim.config.compose import CONF, choices, options
from semaim.config.kinds import TARGET, TRUTH, Kind
from semaim.config.naming import flatten, key_of
from semaim.config.old_versions import FORMER_OPTIONS
from semaim.config.own_files import check_own_files
from semaim.config.schema import COMPONENTS, LAUNCHERS, TOP
from semaim.core.formatting import scientific
from semaim.core.store_address import absolute_address, check_experiment
from semaim.errors import UserError

PYTHON = {"_target_": TARGET, "_partial_": TRUTH}
REFERENCE = re.compile(r"\$\{([\w.]+)\}").fullmatch  # to one other option
UNKNOWN = Kind("unknown", None)  # of what no component has, or must be set elsewhere
SIZES = ("${data.image_size}", "${data.patch_size}")  # model, target and transforms cannot differ from the data
SEVERAL = ("evaluators",)  # groups of which a run has any number of choices


def suggestion(key: str, words: Sequence[str] = (), folders: Sequence[str] = ()) -> str:
    """A hint for a misspelt option: the most similar options, and the options of the same group.

    Args:
        key: the option.
        words: the command line; its choices, such as task=knn, decide which options there are.
        folders: additional configuration folders.
    """
    if key.split("=")[0] == "experiment":
        return "An experiment is added: +experiment=..."
    if key.startswith("hydra.launcher."):
        return "Launchers differ: hydra/launcher=slurm has the options of a cluster (semaim run --cfg hydra)"
    for former, now in FORMER_OPTIONS.items():
        if key == former or key.startswith(f"{former}."):
            return f"It is {now}{key.removeprefix(former)} now"
    container = OmegaConf.to_container(options(_choices_among(words, folders), folders))
    parent, _, _ = key.rpartition(".")
    node: Any = container
    for part in parent.split(".") if parent else ():
        node = node.get(part, {}) if isinstance(node, dict) else {}
    siblings = [name for name in sorted(node) if not name.startswith("_")] if isinstance(node, dict) else []
    dotted = {f"{parent}.{name}" if parent else name for name in siblings}
    # Without the keys of a task that refer to groups: users set the group instead.
    known = {name for name, value in flatten(container).items() if "._" not in name and f"{value}"[:2] != "${"}
    near = difflib.get_close_matches(key, sorted(dotted | known), n=3, cutoff=0.6)
    parts = []
    if near:
        parts.append(f"did you mean {' or '.join(near)}?")
    if siblings:
        parts.append(f"{parent or 'at the top'} has: {', '.join(siblings)}")
    return "; ".join(parts) or "see semaim run --cfg job"


def _choices_among(words: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Those words of a command line that choose one file of a group."""
    pairs = [word.partition("=") for word in words]
    return [f"{group}={choice}" for group, _, choice in pairs if choice and choice in choices(group, folders)]


def check_overrides(
    overrides: Sequence[str], config: DictConfig, chosen: Mapping[str, str], folders: Sequence[str] = ()
) -> None:
    """Reject what Hydra accepts but semaim cannot use, before anything heavy is imported or written.

    These are `+option=value`, which no code reads; `~option`, which removes a required option; a group without or with
    several choices; a file of one's own that has the name of a choice of semaim or names no class; an unknown option in
    such a file; and values that are not of an option's kind.

    Args:
        overrides: the command line.
        config: what it composes.
        chosen: the choice in each group.
        folders: additional configuration folders.

    Raises:
        UserError: for the first such override; the message names the option.
    """
    if "experiment" in config:
        raise UserError("experiment: the file of an experiment begins with the line # @package _global_")
    group_choices = [f"{group}={choice}" for group, choice in chosen.items()]
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = override.key_or_group
        if override.is_delete():
            raise UserError(
                f"~{key}: no option can be removed; give {key} another value, or null where that means none"
            )
        if (CONF / key).is_dir():
            value = override.value()
            if not (isinstance(value, str) and value) and not (isinstance(value, list) and key in SEVERAL):
                raise UserError(no_choice(text, key, folders))
            group_choices += [text] if key in SEVERAL else []
        elif override.is_add() and not key.startswith("hydra"):
            raise UserError(f"+{key}: there is no option {key}. {suggestion(key, overrides, folders)}")
    check_own_files(config, chosen, folders)
    expected = options(group_choices, folders)
    referred = re.findall(r"\$\{(\w+)", str(OmegaConf.to_container(config)))  # a task of one's own may add options
    for key in map(str, {*config} - {*TOP, *chosen, *referred, "named_after"}):
        raise UserError(f"there is no option {key}. {suggestion(key, overrides, folders)}")
    check_values(config, expected, overrides)
    if config.trainer.get("flops") is not None and "trainer.epochs" in map(key_of, overrides):
        both = f"trainer.epochs={config.trainer.epochs} and trainer.flops={scientific(config.trainer.flops)}"
        raise UserError(f"{both} both give the length of the training: leave one out (trainer.flops=null)")
    if config.extend is not None:
        check_pretrains(config.extend, chosen["task"], config.checkpoint)
    if "uri" in config.tracking:
        absolute_address("tracking.uri", config.tracking.uri)
        check_experiment("tracking.experiment", config.tracking.experiment)
    if config.parent_run is not None and not Path(config.parent_run).expanduser().is_dir():
        raise UserError(f"parent_run={shown(config.parent_run)} is not the folder of a run or a sweep")
    root = None if OmegaConf.is_missing(config.data, "root") else config.data.get("root")
    if root is not None and not OmegaConf.is_missing(expected.data, "root") and expected.data.root is None:
        raise UserError(f"data.root={shown(root)} is not read by data={chosen['data']}, whose images need no folder: "
                        f"add data=folder (or another choice of data) for images of your own")  # fmt: skip


def check_pretrains(extend: str, task: str, checkpoint: str | None) -> None:
    """Raise UserError if a run that extends another one is no pretraining, or is to begin with other weights."""
    if task != "pretrain" or checkpoint is not None:
        raise UserError(
            f"extend={shown(extend)} continues the training of a pretraining (task=pretrain), with its whole state; "
            f"checkpoint=<run folder> takes its weights alone, for another training or an evaluation"
        )


def no_choice(word: str, group: str, folders: Sequence[str] = ()) -> str:
    """Message for a word of the command line that gives a group no choice, such as model=null."""
    return f"{word}: {group} must be one of {', '.join(choices(group, folders))}"


def check_values(config: DictConfig, expected: DictConfig, words: Sequence[str] = ()) -> None:
    """Reject values that are not of their option's kind, and options that a component does not have.

    Args:
        config: the configuration.
        expected: the same choices with default values.
        words: the command line, for suggestions.

    Raises:
        UserError: with a line for each such value: what it must be, and the nearest choice.
    """
    given, defaults = OmegaConf.to_container(config), OmegaConf.to_container(expected)
    for references in (False, True):
        found = [_wrong(option, words) for option in _values(config, given, defaults, TOP, references=references)]
        if problems := list(dict.fromkeys(filter(None, found))):
            raise UserError("\n".join(problems))


def _wrong(option: Option, words: Sequence[str] = ()) -> str | None:
    """What is wrong with an option, if it does not exist or its value is not of its kind."""
    name, value, kind, default = option
    if kind is UNKNOWN and isinstance(default, str) and "${" in default:
        return f"{name}={shown(value)}: {name} follows {default[2:-1]}, set that"
    if kind is UNKNOWN:
        return f"there is no option {name}. {suggestion(name, words)}"
    if isinstance(default, Mapping):
        inside = ", ".join(f"{name}.{key}" for key in default if not str(key).startswith("_"))
        return f"{name}={shown(value)}: {name} is a group of options{inside and f', set these: {inside}'}"
    right = kind.words if kind and not kind.accepts(value) else None if kind else _kind_of(default, value)
    if right is None:
        return None
    near = difflib.get_close_matches(str(value), kind.choices if kind else (), n=1, cutoff=0.5)
    usual = "" if default in (None, [], "???", value) or "${" in f"{default}" else f", such as {shown(default)}"
    return f"{name}={shown(value)}: {name} must be {right}" + (f"; did you mean {near[0]}?" if near else usual)


def check_launcher(launcher: Mapping[str, Any]) -> None:
    """Reject options of a launcher that are not of their kind, or do not fit; raises UserError for the first."""
    for key, kind in LAUNCHERS.items():
        if key in launcher and (problem := _wrong(Option(f"hydra.launcher.{key}", launcher[key], kind, None))):
            raise UserError(problem)
    for key, value in {**launcher, **(launcher.get("additional_parameters") or {})}.items():
        if isinstance(value, str) and not value.isprintable():  # each has a line of the batch script
            raise UserError(f"hydra.launcher: {key}={value!r} must be a text of one line")
    limit, delay = launcher.get("timeout_min", 0), launcher.get("signal_delay_s", 0)
    if delay >= 60 * limit > 0:
        raise UserError(
            f"hydra.launcher.signal_delay_s={delay} is not below the time limit, hydra.launcher.timeout_min={limit} "
            f"({60 * limit} s), so every job would stop at once: raise timeout_min, or lower signal_delay_s"
        )


def with_home_folders(config: DictConfig) -> None:
    """Replace a leading ~ in paths by the home folder, in place: a shell does so only at the start of a word."""
    plain: Any = OmegaConf.to_container(config)
    for name, value, kind, _ in _values(config, plain, plain, TOP):
        if isinstance(kind, Kind) and kind.is_path and "~" in f"{value}":
            try:
                home = [str(Path(path).expanduser()) for path in ([value] if isinstance(value, str) else value)]
            except RuntimeError as error:
                raise UserError(f"{name}={shown(value)}: there is no home folder of this user") from error
            OmegaConf.update(config, name, home[0] if isinstance(value, str) else home)


class Option(NamedTuple):
    """An option of a configuration.

    Attributes:
        name: as typed.
        value: resolved.
        kind: what it must be, if that is declared.
        default: of the same choices.
    """

    name: str
    value: Any
    kind: Kind | None
    default: Any


def _values(
    config: DictConfig,
    given: Any,
    defaults: Any,
    declared: Mapping[str, Any] | None,
    path: str = "",
    references: bool = False,
) -> Iterator[Option]:
    """The options of a part of the configuration, or those that others refer to, with the kind that these need.

    Raises:
        UserError: for a reference to something that does not exist.
    """
    for key, value in given.items():
        name = f"{path}.{key}" if path else str(key)
        default = defaults.get(key)
        kind = (declared or {}).get(key, PYTHON.get(key))
        if isinstance(value, Mapping) and not isinstance(kind, Kind) and isinstance(default, Mapping):
            own = kind if kind is not None else COMPONENTS.get(str(value.get("_target_")))
            yield from _values(config, value, default, own, name, references)
            continue
        is_text = isinstance(value, str)
        if references and is_text and value == default and isinstance(kind, Kind) and (reference := REFERENCE(value)):
            yield Option(reference[1], _resolved(config, name, value), kind, None)
        if references or value == "???" or (is_text and "${" in value and value == default):
            continue
        if str(key).startswith("_") and key not in PYTHON:
            continue
        is_leaf = path and not isinstance(value, Mapping) and not isinstance(default, Mapping)
        other_size = default in SIZES and value != OmegaConf.select(config, default[2:-1])
        if other_size or (kind is None and declared is not None and is_leaf):
            kind = UNKNOWN
        if value is not None or path != "task.evaluators":  # null switches one off
            yield Option(name, _resolved(config, name, value) if is_text and "${" in value else value, kind, default)


def _resolved(config: DictConfig, name: str, text: str) -> Any:
    try:
        value = OmegaConf.select(config, name)
    except OmegaConfBaseException as error:
        raise UserError(f"{name}={text}: {str(error).splitlines()[0]}") from error
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _kind_of(default: Any, value: Any) -> str | None:
    """The kind of an undeclared option, in words, if a value's differs from its default's; None if it fits."""
    if value is None or default is None:
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if isinstance(default, float):
        return None if type(value) in (int, float) and math.isfinite(value) else "a number"
    if isinstance(default, str):
        return None if isinstance(value, str) and value else "a text, not empty"
    if isinstance(default, list):
        return None if isinstance(value, list) else "a list"
    return None


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):  # quoted also where it would be read as another type
        readable = re.fullmatch(r"[^\s'\"\\,\[\]{}()\d+-][^\s'\"\\,\[\]{}()]*", value) and value.isprintable()
        return value if readable and value not in ("true", "false", "null", "nan", "inf") else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(each)}" for key, each in value.items()) + "}"
    return str(value)
