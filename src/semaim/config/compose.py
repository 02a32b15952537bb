"""What the command line may say, and what a person is told when it says something else."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from semaim.errors import Interrupted, NonFiniteError, SweepFailed, UserError
from semaim.runs.folder import flatten

EXIT_FAULT, EXIT_MISTAKE, EXIT_NOT_FINITE, EXIT_INTERRUPTED, EXIT_AT_ONCE = 1, 2, 3, 75, 130
CONF = (Path(__file__).parents[1] / "conf").resolve()

# Hydra's launchers for this machine in our form, under the names they have everywhere. (Files of these names would be
# taken for values of the schemas that the plugins have registered, which must be there first.)
Plugins.instance()
LOCAL_LAUNCHERS: dict[str, dict[str, Any]] = {
    "basic": {"_target_": "hydra_plugins.semaim_launchers.BasicLauncher"},
    "submitit_local": {
        "_target_": "hydra_plugins.semaim_launchers.LocalLauncher",
        "gpus_per_node": None,
        "tasks_per_node": 1,
        "timeout_min": 10_000,
    },
}
for _name, _node in LOCAL_LAUNCHERS.items():
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="semaim")


def options(choices: Sequence[str] = (), folders: Sequence[str] = ()) -> DictConfig:
    """The configuration with some choices of groups and no option changed: every option, and a value of its kind.

    Args:
        choices: such as "model=aim_large".
        folders: configuration folders besides our own (Hydra's --config-dir).
    """
    return _options(tuple(choices), tuple(folders))


@lru_cache(maxsize=256)
def _options(choices: tuple[str, ...], folders: tuple[str, ...]) -> DictConfig:
    config = composition(choices, folders)
    OmegaConf.set_readonly(config, True)
    return config


def composition(overrides: Sequence[str], folders: Sequence[str] = (), return_hydra_config: bool = False) -> DictConfig:
    """The configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        everything = [*overrides, f"hydra.searchpath={list(folders)}"]
        return compose("config", overrides=everything, return_hydra_config=return_hydra_config)


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def suggestion(key: str) -> str:
    """The options nearest to a misspelt one, and those beside it."""
    container = _plain(options())
    parent, _, _ = key.rpartition(".")
    node: Any = container
    for part in parent.split(".") if parent else ():
        node = node.get(part, {}) if isinstance(node, dict) else {}
    beside = [name for name in sorted(node) if not name.startswith("_")] if isinstance(node, dict) else []
    dotted = {f"{parent}.{name}" if parent else name for name in beside}
    # a task's own keys that repeat the groups are not what a person would set
    known = {name for name, value in flatten(container).items() if "._" not in name and f"{value}"[:2] != "${"}
    near = difflib.get_close_matches(key, sorted(dotted | known), n=3, cutoff=0.6)
    parts = []
    if near:
        parts.append(f"did you mean {' or '.join(near)}?")
    if beside:
        parts.append(f"{parent or 'at the top'} has: {', '.join(beside)}")
    return "; ".join(parts) or "see python -m semaim.run --cfg job"


def check_overrides(overrides: Sequence[str], config: DictConfig, folders: Sequence[str] = ()) -> None:
    """Refuse what Hydra would take although nothing can come of it.

    That is `+option=value`, which nothing reads; `~option`, which something misses; an unknown option in an experiment
    file; and a value of another kind than the option has.

    Raises:
        UserError: naming the option.
    """
    choices = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = override.key_or_group
        if override.is_delete():
            raise UserError(f"~{key}: nothing can be left out; give {key} another value, or null where that means none")
        if (CONF / key).is_dir():
            choices.append(text)
        elif override.is_add() and not key.startswith("hydra"):
            raise UserError(f"+{key}: there is no option {key}. {suggestion(key)}")
    if unknown := sorted(str(key) for key in set(config) - set(options())):
        raise UserError(f"there is no option {unknown[0]}. {suggestion(unknown[0])}")
    expected, given = flatten(_plain(options(choices, folders))), flatten(_plain(config))
    for key, value in given.items():
        if key in expected and (kind := _other_kind(expected[key], value)):
            shown = "nothing" if value == "" else value
            raise UserError(f"{key}={shown}: {key} must be {kind}, such as {expected[key]}")


def _other_kind(default: Any, value: Any) -> str | None:
    """What a value should be if it is not of the kind of its default; None if it is, or if that cannot be told."""
    if value is None or (isinstance(value, str) and "${" in value):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):  # sizes may also be pairs
        return None if isinstance(value, int | list) and not isinstance(value, bool) else "a whole number"
    if isinstance(default, float):
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if isinstance(default, list):
        return None if isinstance(value, list) else "a list"
    return None


def explain(error: BaseException) -> str | None:
    """The message for an error that its user can mend, or None if it is a fault of the program."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"there is no option {match[1]}. {suggestion(match[1])}"
    if match := re.search(r"Missing mandatory value: .*?full_key: (\S+)", text, re.DOTALL):
        return f"{match[1]} must be given: {match[1]}=..."
    if match := re.search(r"unexpected keyword argument '(\w+)'.*?full_key: (\S+)", text, re.DOTALL):
        return f"there is no option {match[2].removeprefix('task.')}.{match[1]}: nothing takes it"
    if match := re.search(r"Error in call to target .*?\n(.*)\nfull_key: (\S+)", text, re.DOTALL):
        return f"the options of {match[2].removeprefix('task.')} do not fit: {match[1]}"
    if "Error locating target" in text:
        return f"{str(error).split(', set env var')[0]}: {chain[-1]}"
    if any(isinstance(link, HydraException) or type(link).__module__.startswith("omegaconf") for link in chain):
        return str(error).split("\nConfig search path:")[0].strip()
    return None


def report(error: BaseException) -> int:
    """Tell the person at the keyboard what ended a run; the exit code for it."""
    if isinstance(error, Interrupted):
        print(f"{error}; everything is saved, and the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, SweepFailed):
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAULT
    if isinstance(error, KeyboardInterrupt):
        print("interrupted at once; the same command continues from the last checkpoint", file=sys.stderr)
        return EXIT_AT_ONCE
    if (message := explain(error)) is None:
        traceback.print_exception(error)
        return EXIT_FAULT
    print(f"error: {message}", file=sys.stderr)
    return EXIT_NOT_FINITE if isinstance(error, NonFiniteError) else EXIT_MISTAKE
