"""Errors of Hydra and OmegaConf in the words of the command line: the option as typed, and what to do."""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from semaim.config.compose import CONF, choices, named_folders, roots
from semaim.config.validate import SEVERAL, no_choice, suggestion
from semaim.core.formatting import quoted


def hydra_message(chain: Sequence[BaseException], words: Sequence[str]) -> str:
    """The message for an error of Hydra, OmegaConf or YAML.

    Args:
        chain: the error and its causes.
        words: the command line.
    """
    text = "\n".join(str(link) for link in chain)
    if isinstance(chain[0], MarkedYAMLError):
        where = chain[0].problem_mark
        return (f"{where.name}, line {where.line + 1}: " if where else "") + str(chain[0].problem)
    if isinstance(chain[0], UnicodeDecodeError):
        return f"a file of the configuration is not text in UTF-8: {chain[0]}"
    for link in chain:
        if typed := getattr(link, "override", None):
            return _unreadable(str(typed))
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        several = "several values are a sweep, which -m starts; a value with a comma is typed"
        return f"{match[1]}: {several} {_quoted(match[1])}"
    if match := re.search(r"Could not (?:find|load) '([^']+)/([^'/]*)'", text):
        return _unknown_choice(match[1].removeprefix("/"), match[2], named_folders(words))
    if match := re.search(r"Multiple values for ([\w/]+)\.|force-add .* not supported: '\+\+([\w/]+)=", text):
        group = match[1] or match[2]
        if typed := next((word for word in words if re.match(rf"\++{group}=", word)), None):
            return f"{typed}: {group} has a choice, which is replaced without +: {typed.lstrip('+')}"
    if "Config group override must be a string or a list" in text or "'${recipe}/${task}'" in text:
        return _no_group_choice(words)
    if match := re.search(r"Could not override '([^']+)'", text):
        inside = re.search(r"is not in struct\s+full_key: (\S+)", text)
        key = max(match[1], inside[1] if inside else "", key=len)  # a value may hold options
        return f"there is no option {key}. {suggestion(key, words, named_folders(words))}"
    if match := re.search(r"Missing mandatory value: .*?full_key: (\S+)", text, re.DOTALL):
        return f"{match[1]} must be given: {match[1]}=..."
    if match := re.search(r"unexpected keyword argument '(\w+)'.*?full_key: (\S+)", text, re.DOTALL):
        return f"there is no option {match[2].removeprefix('task.')}.{match[1]}{_accepted(text)}"
    if match := re.search(r"Error in call to target .*?\n(.*)\nfull_key: (\S+)", text, re.DOTALL):
        return f"the options of {match[2].removeprefix('task.')} do not fit: {match[1]}"
    if match := re.search(r"Error locating target '([^']+)'", text):
        return f"{match[1]} cannot be imported: {chain[-1]}{_where(match[1].split('.')[0], chain[-1], words)}"
    if of_config := [link for link in chain if isinstance(link, OmegaConfBaseException)]:
        name = next((key for link in chain if (key := getattr(link, "full_key", None))), "")
        typed = next((word for word in words if name and word.lstrip("+").startswith(f"{name}=")), name)
        typed = typed or next((word for word in words if "${" in word), "")
        reason = str(of_config[0]).splitlines()[0]
        return f"{typed}: {reason}" if typed else reason
    return str(chain[0]).split("\nConfig search path:")[0].strip()


def _accepted(text: str) -> str:
    """The options of the class or function that does not accept one."""
    match = re.search(r"Error in call to target '([^']+)'", text)
    if match is None:
        return ": no component accepts it"
    names = [name for name in inspect.signature(get_object(match[1])).parameters if name not in ("args", "kwargs")]
    return f"; {match[1]} has: {', '.join(names) or 'no options'}"


def _where(module: str, error: BaseException, words: Sequence[str]) -> str:
    """What to do if the module of a class is not found."""
    if not (isinstance(error, ModuleNotFoundError) and error.name == module):
        return ""
    for folder in (each.absolute() for each in roots(named_folders(words)) if each != CONF):  # those of the user
        for place in (folder, folder.parent):
            if (place / f"{module}.py").is_file() or (place / module / "__init__.py").is_file():
                return f". It is in {quoted(place)}, so begin the command with PYTHONPATH={shlex.quote(str(place))}"
    return f". Start in the folder of {module}.py, or name that folder: begin the command with PYTHONPATH=<folder>"


def _quoted(word: str) -> str:
    """A word of the command line whose value is a text for Hydra as well as for the shell."""
    key, _, value = word.partition("=")
    return shlex.quote(f'{key}="{value}"')


def _unreadable(word: str) -> str:
    key, equals, _ = word.partition("=")
    if not equals:
        return f"{word}: an option is typed option=value"
    if not re.fullmatch(r"[+~]*[\w$-]+([./@][\w$-]+)*", key, re.ASCII):
        return f"{word}: {key!r} is not the name of an option"
    return (
        f"{word}: Hydra cannot read this value. A text with ~, brackets, braces, quotes or commas is quoted for Hydra "
        f"and for the shell: {_quoted(word)}"
    )


def _unknown_choice(group: str, name: str, folders: Sequence[str]) -> str:
    """Message for a choice that a group does not have."""
    known = choices(group, folders)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]}?" if near else ":" if known else ""
    listed = f" choose from {', '.join(known)}" if known else ""  # not those of Hydra's own groups
    return f"there is no {name or 'empty choice'} in {group} ({group}={name}){hint}{listed}"


def _no_group_choice(words: Sequence[str]) -> str:
    """Message for a choice that is not a name, such as model=null."""
    parser = OverridesParser.create()
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if "=" in word and (not key or (CONF / key).is_dir()):
            value = parser.parse_overrides([word])[0].value()
            if not isinstance(value, str | list if key in SEVERAL else str):
                return no_choice(word, key, named_folders(words)) if key else _unreadable(word)
    return "a group of the configuration needs the name of a choice, such as model=aim_base"
