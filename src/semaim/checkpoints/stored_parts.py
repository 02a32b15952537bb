"""The order, the semantic map and the target of a run, built from the configuration in its checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from semaim.errors import UserError

# Attributes of the classes of a group. Nothing else is called, so that a checkpoint from elsewhere runs no other code.
ATTRIBUTES = {
    "permutation": ("priority", "order", "needs_map"),
    "semantic_map": ("network_beside", "__call__"),
    "target": ("fitted", "check", "loss"),
}


def stored_part(config: Mapping[str, Any], group: str, given: str, path: Path) -> Any:
    """The object of a group in a stored configuration; None if it has no such group.

    Args:
        config: the configuration.
        group: "permutation", "semantic_map" or "target".
        given: option and value that named the checkpoint, for messages.
        path: of the checkpoint.

    Raises:
        UserError: if its class cannot be imported or came with the checkpoint, is of another kind, or has other
            arguments.
    """
    if group not in config:
        return None
    arguments = dict(config[group]) if isinstance(config[group], Mapping) else {}
    name = arguments.pop("_target_", None)
    if _came_with(path.resolve(), str(name)):
        raise UserError(
            f"{given} was trained with {group} {name}, which lies beside it and may have come with it, so it is not "
            f"imported: put a module that you trust into another folder, named by PYTHONPATH"
        )
    try:
        kind = get_class(name)
    except Exception as error:  # an import may raise any exception
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f"{given} was trained with {group} {name}, which cannot be imported ({reason}): put the folder of its "
            f"module on PYTHONPATH"
        ) from error
    if not all(hasattr(kind, attribute) for attribute in ATTRIBUTES[group]):
        raise UserError(f"{given} names {name} as its {group}, which is none: it is not used")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"{given} has other options of {group} than {name} takes now: {error}") from error


def _came_with(path: Path, name: str) -> bool:
    """Whether a module lies in the folder of the checkpoint or beside it, as `runs.x.module` in the working directory.

    A folder that the user has put on the path of modules is one to import from, with what lies in it directly.
    """
    folder = path if path.is_dir() else path.parent
    for entry in (Path(entry).resolve() for entry in sys.path):
        module = entry.joinpath(*name.split("."))
        if any(entry in place.parents and module.is_relative_to(place) for place in (folder, folder.parent)):
            return True
    return False
