"""Run names, and the options that may differ when a run continues."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Options that change where or how fast a run computes, but not its result: they are not part of its name (except
# data.root) and may change when it continues.
MAY_DIFFER = (
    "device",
    "runs_dir",
    "run_name",
    "run_dir",
    "tracking",
    "then",
    "parent_run",
    "sweep",
    "task.features_dir",
    "task.source.tracking",  # the same, where mlflow:<run id> is looked up
    "trainer.accumulate",
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.keep_checkpoints",
    "trainer.log_every_steps",
    "trainer.max_steps",
    "trainer.milestone_every_epochs",
    "trainer.profile_steps",
    "trainer.save_every_epochs",
    "trainer.save_every_steps",
    "trainer.strategy",
    "model.activation_checkpointing",  # before 0.2.0; trainer.activation_checkpointing now
    "data.num_workers",
    "data.timeout_seconds",
    "data.max_unreadable",
    "data.accept_changes",
    "data.source.download",
    "data.root",
)


LONGEST = 120  # characters of a name


class CheckpointName(NamedTuple):
    """How the name of an evaluation names its checkpoint.

    Attributes:
        text: a short name; two checkpoints never have the same.
        tells_data: whether it is of a run, so that it says which data the evaluation takes.
    """

    text: str
    tells_data: bool


def may_differ(key: str) -> bool:
    """Whether an option may change when a run continues."""
    return any(is_part(key, name) for name in MAY_DIFFER)


def is_part(key: str, name: str) -> bool:
    """Whether an option is another one, or inside of it."""
    return f"{key}.".startswith(f"{name}.")


def run_name(
    choices: Mapping[str, str], named_after: Sequence[str], overrides: Sequence[str], of: CheckpointName | None = None
) -> str:
    """The stable name of a run: its choices in `named_after`, then the remaining overrides.

    The same command gives the same name in any process, so it finds its run folder again. An evaluation is named
    <task>_<checkpoint>, with the data before the checkpoint if it was not made by a run.

    Args:
        choices: choice in each config group.
        named_after: groups at the beginning of the name.
        overrides: command-line overrides, such as "trainer.epochs=20".
        of: the name of the checkpoint of an evaluation; None for other runs.
    """
    groups = [group for group in named_after if of is None or not of.tells_data or group != "data"]
    rest = [each for each in other_overrides(groups, overrides) if of is None or key_of(each) != "checkpoint"]
    parts = [choices[group] for group in groups] + ([of.text] if of is not None else [])
    if of is not None and rest:  # the name of the checkpoint may end with overrides of its own
        parts.append("with")
    # Hydra does not accept an unquoted "=" in a value such as checkpoint=runs/<name>.
    exact = "_".join([*parts, *(override.replace("=", "-", 1) for override in rest)])
    # A value that looks like a further option: data.root=a_seed-1 beside data.root=a seed=1.
    option = re.compile(rf"=.*_({'|'.join((*choices, 'seed', 'with'))})[\w.]*[-_]")
    mistakable = any(option.search(each) for each in rest)
    if len(exact) > LONGEST:
        rest = [f"{key_of(each).rpartition('.')[2]}={each.partition('=')[2]}" for each in rest]
        if of is not None:  # its options tell evaluations of one checkpoint apart
            options = sum(len(each) + 1 for each in (*rest, "with"))
            parts[len(groups)] = of.text[: max(30, LONGEST - 11 - options - len("_".join(parts[: len(groups)])))]
    shown = "_".join([*parts, *(override.replace("=", "-", 1) for override in rest)])
    return folder_name(exact, shown, mistakable)


def folder_name(exact: str, shown: str | None = None, mistakable: bool = False) -> str:
    """A name for a folder, readable and not too long; with a checksum if it is not exactly the given one.

    Args:
        exact: what determines the name.
        shown: what to show of it if it is too long.
        mistakable: whether something else has the same text.
    """
    readable = re.sub(r"[^A-Za-z0-9_.+-]+", "-", _ascii(shown or exact)).strip("-")
    if readable == exact and len(exact) <= LONGEST and not mistakable:
        return exact
    return f"{readable[: LONGEST - 10]}-{checksum(exact)}"


def checksum(text: str) -> str:
    """A short checksum that makes a name unique."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _ascii(text: str) -> str:
    """Letters without accents: a photo folder "Föhr" is readable as Fohr."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() if not text.isascii() else text


def key_of(override: str) -> str:
    """The option that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """The overrides without those that a later one replaces."""
    return list({key_of(each): each for each in overrides}.values())


def other_overrides(groups: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The overrides that affect the result of a run, except the choices in these groups; sorted, one of each option."""
    last = sorted(override.lstrip("+") for override in last_of_each(overrides))
    named = [each for each in last if key_of(each) == "data.root" or not may_differ(key_of(each))]
    return [each for each in named if key_of(each) not in groups]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; lists remain values."""
    if not isinstance(config, Mapping) or not config:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(old: Any, new: Any) -> list[str]:
    """Differences between two configurations that affect the result, one line each."""
    before, after = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if not may_differ(key) and before.get(key, absent) != after.get(key, absent)
    ]
