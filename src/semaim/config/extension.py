"""`extend=runs/<name>`: the command line of a run that goes on from the end of another one.

Such a run has the options of the other one, but for those that are typed with `extend=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from semaim.config.naming import folder_name, is_part, key_of, other_overrides
from semaim.config.stored_command import separated, stored_command, with_changes
from semaim.config.validate import check_pretrains, shown
from semaim.errors import UserError

# Options that say where a run is, or where it began.
NOT_INHERITED = ("extend", "checkpoint", "run_name", "run_dir", "sweep")


def extended(overrides: Sequence[str], folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with the options and configuration folders of the run that it extends, and a name of its own.

    One without `extend=` is returned as it is. Extended again, the result stays the same.

    Raises:
        UserError: if there is no such run.
    """
    values = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(list(overrides))}
    if (value := values.get("extend")) is None:
        return list(overrides), list(folders)
    check_pretrains(str(value), values.get("task", "pretrain"), values.get("checkpoint"))
    given, folder = f"extend={shown(str(value))}", Path(str(value)).expanduser()
    if not folder.is_dir():
        if "run_name" in values:  # it was deleted since, and these are all options
            return list(overrides), list(folders)
        raise UserError(f"{given} does not exist: give the folder of a finished run, such as extend=runs/<name>")
    flags, options = separated(stored_command(folder, given))
    changes = [each for each in overrides if not any(is_part(key_of(each), name) for name in NOT_INHERITED)]
    inherited = [each for each in options if not any(is_part(key_of(each), name) for name in NOT_INHERITED)]
    own = [each for each in overrides if each not in changes and key_of(each) != "extend"]
    if not {"run_name", "run_dir"} & values.keys():
        new = other_overrides((), [each for each in changes if each not in options])
        name = "_".join([folder.resolve().name, "extended", *(each.replace("=", "-", 1) for each in new)])
        own.append(f"run_name={shown(folder_name(name))}")
    theirs = [f"file://{word}" for flag, word in pairwise(flags) if flag == "--config-dir"]
    words = [*with_changes(inherited, changes), *own, f"extend={shown(str(Path(str(value))))}"]
    return words, [*(each for each in theirs if each not in folders), *folders]
