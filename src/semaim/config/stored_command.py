"""The command of a stored run or sweep, and the same command with changes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from semaim.config.naming import key_of
from semaim.core.files import no_pipe
from semaim.errors import UserError

OF_FLAGS = ("-cd", "-cn", "-cp", "--config-dir", "--config-name", "--config-path")  # the next word is theirs


def separated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a command line, with their values, and its options."""
    are_options = [
        "=" in word and word[0] != "-" and before not in OF_FLAGS
        for before, word in zip(["", *words], words, strict=False)
    ]
    flags = [word for word, is_option in zip(words, are_options, strict=True) if not is_option]
    return flags, [word for word, is_option in zip(words, are_options, strict=True) if is_option]


def with_changes(words: Sequence[str], changes: Sequence[str]) -> list[str]:
    """A command line in which changes replace the options that they name."""
    (flags, options), (new_flags, new_options) = separated(words), separated(changes)
    changed = {key_of(option) for option in new_options}
    kept = [option for option in options if key_of(option) not in changed]
    return [*flags, *(flag for flag in new_flags if flag not in flags), *kept, *new_options]


def words_of(command: str, of: str) -> list[str]:
    """The words after `semaim run` or `python -m semaim.run` in a command.

    Args:
        command: the command, quoted for a shell.
        of: what it started, for the message.

    Raises:
        UserError: if it is another command.
    """
    words = shlex.split(command)
    for index, word in enumerate(words):
        if word in ("run", "semaim.run") or word.endswith("semaim/run.py"):
            return words[index + 1 :]
    raise UserError(f"{of} was not started with semaim run, but with: {command}")


def stored_command(folder: Path, given: str) -> list[str]:
    """The words after `semaim run` of the command that last started a run.

    Args:
        folder: the run folder.
        given: what named it, for messages.

    Raises:
        UserError: if the folder does not hold it, or is of another user.
    """
    journal = folder / "metrics.jsonl"
    try:
        lines, owner = no_pipe(journal).read_bytes().splitlines(), journal.stat().st_uid
    except OSError as error:
        raise UserError(f"{given} is not the folder of a run: it has no readable metrics.jsonl") from error
    if owner != os.getuid():
        raise UserError(f"{given} is of another user, whose options could run any code as yours: if you trust them, "
                        f"copy the folder first (cp -r)")  # fmt: skip
    for line in reversed(lines):
        if b'"tags"' in line and b'"command"' in line:
            try:
                return words_of(json.loads(line)["tags"]["command"], given)
            except (ValueError, KeyError, TypeError):  # a damaged line, or a tag of another kind
                continue
    raise UserError(f"{given}: its metrics.jsonl does not hold its command: type its options")
