"""The order, the semantic map and the target of a run, built from the configuration in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from semaim.errors import UserError

# Attributes of the classes of a group. Nothing else is called, so that a checkpoint from elsewhere runs no other code.
ATTRIBUTES = {
    "permutation": ("priority", "order", "needs_map"),
    "semantic_map": ("network_beside", "__call__"),
    "target": ("fitted", "check", "loss"),
}


def stored_part(config: Mapping[str, Any], group: str, given: str) -> Any:
    """The object of a group in a stored configuration; None if it has no such group.

    Args:
        config: the configuration.
        group: "permutation", "semantic_map" or "target".
        given: option and value that named the checkpoint, for messages.

    Raises:
        UserError: if its class cannot be imported, is of another kind, or has other arguments.
    """
    if group not in config:
        return None
    arguments = dict(config[group])
    name = arguments.pop("_target_", None)
    try:
        kind = get_class(name)
    except Exception as error:  # an import may raise any exception
        reason = str(error).splitlines()[-1]
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
