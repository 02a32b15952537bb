"""Run names, and the options that may differ when a run continues."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
    "trainer.accumulate",
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.keep_checkpoints",
    "trainer.log_every_steps",
    "trainer.max_steps",
    "trainer.milestone_every_epochs",
    "trainer.save_every_epochs",
    "trainer.save_every_steps",
    "model.activation_checkpointing",
    "data.num_workers",
    "data.timeout_seconds",
    "data.max_unreadable",
    "data.accept_changes",
    "data.source.download",
    "data.root",
)


def may_differ(key: str) -> bool:
    """Whether an option may change when a run continues."""
    return any(is_part(key, name) for name in MAY_DIFFER)


def is_part(key: str, name: str) -> bool:
    """Whether an option is another one, or inside of it."""
    return f"{key}.".startswith(f"{name}.")


def run_name(choices: Mapping[str, str], named_after: Sequence[str], overrides: Sequence[str]) -> str:
    """The stable name of a run: its choices in `named_after`, then the remaining overrides.

    The same command gives the same name in any process, so it finds its run folder again.

    Args:
        choices: choice in each config group.
        named_after: groups at the beginning of the name.
        overrides: command-line overrides, such as "trainer.epochs=20".
    """
    parts = [choices[group] for group in named_after]
    rest = other_overrides(named_after, overrides)
    # Hydra does not accept an unquoted "=" in a value such as checkpoint=runs/<name>.
    return folder_name("_".join([*parts, *(override.replace("=", "-", 1) for override in rest)]))


def folder_name(exact: str) -> str:
    """A name for a folder, readable and not too long; with a checksum if it is not exactly the given one."""
    readable = re.sub(r"[^A-Za-z0-9_.+-]+", "-", exact).strip("-")
    if readable == exact and len(exact) <= 120:
        return exact
    return f"{readable[:110]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def other_overrides(groups: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The overrides that affect the result of a run, except the choices in these groups; sorted."""
    stripped = sorted(override.lstrip("+") for override in overrides)
    named = [o for o in stripped if o.split("=")[0] == "data.root" or not may_differ(o.split("=")[0])]
    return [o for o in named if o.split("=")[0] not in groups]


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
