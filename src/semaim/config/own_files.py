"""Checks of the files of choices in a user's own configuration folders."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig

from semaim.config.compose import CONF, folder_path, options, roots
from semaim.core.formatting import quoted
from semaim.errors import UserError


def check_own_files(config: DictConfig, chosen: Mapping[str, str], folders: Sequence[str] = ()) -> None:
    """Reject a file of a user that has the name of a choice of semaim, and one that names no class.

    Args:
        config: the composed configuration.
        chosen: the choice in each group.
        folders: additional configuration folders.

    Raises:
        UserError: for the first such file.
    """
    default = options()
    for group, choice in chosen.items():
        of_semaim = (CONF / group / f"{choice}.yaml").is_file()
        own = [folder_path(folder) / group / f"{choice}.yaml" for folder in folders]
        if of_semaim and (unused := [path for path in own if path.is_file()]):
            raise UserError(f"{quoted(unused[0])} is not used: semaim has a {group} of this name, rename the file")
        node = config.get(group)
        if of_semaim or (isinstance(node, Mapping) and node.get("_target_")) or "_target_" not in default[group]:
            continue
        file = next((path for root in roots(folders) if (path := root / group / f"{choice}.yaml").is_file()), None)
        named = f"{group}={choice}" if file is None else quoted(file)
        keys = list(map(str, node)) if isinstance(node, Mapping) else []
        if near := difflib.get_close_matches("_target_", keys, n=1, cutoff=0.7):
            raise UserError(f"{named} has {near[0]}: did you mean _target_?")
        others = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        raise UserError(f"{named} names no class: begin it with a line defaults: [<choice>, _self_], which takes what "
                        f"it does not set from {others}, or with _target_: <module>.<class>")  # fmt: skip
