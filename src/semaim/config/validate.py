"""Validation of overrides: unknown options, and values of the wrong type."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from semaim.config.compose import CONF, options
from semaim.config.naming import flatten
from semaim.config.old_versions import FORMER_OPTIONS
from semaim.errors import UserError


def suggestion(key: str) -> str:
    """A hint for a misspelt option: the most similar options, and the options of the same group."""
    for former, now in FORMER_OPTIONS.items():
        if key == former or key.startswith(f"{former}."):
            return f"It is {now}{key.removeprefix(former)} now"
    container = OmegaConf.to_container(options())
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


def check_overrides(overrides: Sequence[str], config: DictConfig, folders: Sequence[str] = ()) -> None:
    """Reject overrides that Hydra accepts but semaim cannot use.

    These are `+option=value`, which no code reads; `~option`, which removes a required option; an unknown option in an
    experiment file; and a value of the wrong type.

    Raises:
        UserError: for the first such override; the message names the option.
    """
    choices = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = override.key_or_group
        if override.is_delete():
            raise UserError(
                f"~{key}: no option can be removed; give {key} another value, or null where that means none"
            )
        if (CONF / key).is_dir():
            choices.append(text)
        elif override.is_add() and not key.startswith("hydra"):
            raise UserError(f"+{key}: there is no option {key}. {suggestion(key)}")
    if unknown := sorted(str(key) for key in set(config) - set(options())):
        raise UserError(f"there is no option {unknown[0]}. {suggestion(unknown[0])}")
    expected, given = (flatten(OmegaConf.to_container(each)) for each in (options(choices, folders), config))
    for key, value in given.items():
        if key in expected and (kind := _expected_kind(expected[key], value)):
            shown = "nothing" if value == "" else value
            raise UserError(f"{key}={shown}: {key} must be {kind}, such as {expected[key]}")


def _expected_kind(default: Any, value: Any) -> str | None:
    """The expected type, in words, if a value's type differs from its default's; None if it fits or is unknown."""
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
