"""Damaged files of runs, and what each command says about them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from semaim import cli
from semaim.config.messages import print_error
from support.in_process import logging_left_as_found

BINARY = bytes(range(256)) * 4


def _each(value: Any, new: Any) -> Any:
    """The same keys, each with another value."""
    return dict.fromkeys(value, new) if isinstance(value, dict) else new


def _without(value: Any, depth: int) -> Any:
    """The value without its first key; `depth` levels down without the first key of each."""
    if not isinstance(value, dict):
        return value
    if not depth:
        return dict(list(value.items())[1:])
    return {key: _without(each, depth - 1) for key, each in value.items()}


# Of the bytes of any file.
OF_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda _: BINARY,
    "zeroed": lambda content: bytes(len(content)),
    "prefixed": lambda content: BINARY + content,
}
# Of the value in a JSON or YAML file, or in the middle line of a journal.
OF_VALUES: dict[str, Callable[[Any], Any]] = {
    "null": lambda _: None,
    "number": lambda _: 5,
    "text": lambda _: "text",
    "list": lambda _: [],
    "list of itself": lambda value: [value],
    "no keys": lambda _: {},
    "nulls": lambda value: _each(value, None),
    "lists": lambda value: _each(value, []),
    "dicts": lambda value: _each(value, {}),
    "texts": lambda value: _each(value, "text"),
    "numbers": lambda value: _each(value, 7),
    "a key less": lambda value: _without(value, 0),
    "a key less inside": lambda value: _without(value, 1),
    "newer": lambda value: {**_each(value, {"version": 9}), "schema": 9} if isinstance(value, dict) else {"schema": 9},
}


PIPE = "pipe"  # in place of the file: who opens it waits


def damage(file: Path, kind: str) -> None:
    """Damage a file."""
    content = file.read_bytes()
    if kind == PIPE:
        file.unlink()
        os.mkfifo(file)
        return
    if kind in OF_BYTES:
        file.write_bytes(OF_BYTES[kind](content))
        return
    change = OF_VALUES[kind]
    if file.suffix == ".jsonl":
        lines = content.splitlines()
        middle = len(lines) // 2
        lines[middle] = json.dumps(change(json.loads(lines[middle]))).encode()
        file.write_bytes(b"\n".join(lines) + b"\n")
    elif file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(change(yaml.safe_load(content))))
    else:
        file.write_text(json.dumps(change(json.loads(content))))


def told(command: Callable[[], Any]) -> tuple[int, str]:
    """Exit code of a function that stands for a command, and all it printed; an error is printed as by a program."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), logging_left_as_found():
        logging.getLogger("semaim").handlers.clear()  # handlers that earlier tests have left write to closed files
        root = logging.getLogger()
        root.handlers[:] = [each for each in root.handlers if type(each).__module__.startswith("_pytest")]
        try:
            code = command() or 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except Exception as error:  # as in `reports_errors`
            code = print_error(error)
    return code, output.getvalue()


def semaim(*words: str) -> tuple[int, str]:
    """As `told`, for the program."""
    return told(lambda: cli.main(words))
