"""`semaim run --help [word ...]`: explains groups, choices and options."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from semaim.config.compose import CONF, choices, named_folders
from semaim.config.described import Choice, Option, all_options, choice_of, groups, is_shown
from semaim.core.formatting import quoted
from semaim.errors import UserError

WIDTH = 118
HELP_FLAGS = ("-h", "--help")
OVERVIEW = Path(__file__).with_name("help.txt")


def help_page(words: Sequence[str]) -> str:
    """The help for a command line with --help: of its groups, choices and options, or else the overview.

    Raises:
        UserError: for a word that is none of these.
    """
    folders = named_folders(words)
    topics = [word for word in words if not word.startswith("-") and word not in folders]
    if topics:
        return "\n\n".join(_topic(word, folders) for word in topics)
    rows = []
    for group, (_, summary) in groups().items():
        # There are too many experiments for the page.
        is_long = group == "experiment"
        listed = "semaim run --help experiment lists them" if is_long else ", ".join(choices(group, folders))
        rows.append((group, f"{summary.removesuffix(': +experiment=...')}: {listed}"))
    return OVERVIEW.read_text().rstrip().replace("$GROUPS", _table(rows, 2))


def _topic(word: str, folders: Sequence[str]) -> str:
    """The help for a word."""
    name, _, value = word.lstrip("+").partition("=")
    known = groups()
    if name in known:
        chosen = [each for each in value.strip("[]").split(",") if each]
        pages = [_choice(name, each, folders) for each in chosen] or [_group(name, *known[name], folders)]
        return "\n\n".join(pages)
    options = all_options(folders)
    if found := {key: of for key, of in options.items() if f"{key}.".startswith(f"{name}.")}:
        return _option(name, found[name]) if [*found] == [name] else _table(_rows(found))
    if of := [group for group in known if name in choices(group, folders)]:
        return "\n\n".join(_choice(group, name, folders) for group in of)
    near = difflib.get_close_matches(
        name, [*known, *(each for group in known for each in choices(group, folders)), *options], n=1, cutoff=0.5
    )
    raise UserError(f"--help {word}: there is no group, choice or option of this name"
                    + (f"; did you mean {near[0]}?" if near else ": semaim run --help lists the groups"))  # fmt: skip


def _group(group: str, default: str, summary: str, folders: Sequence[str]) -> str:
    """The help for a group: its choices, and the options of the default."""
    names = choices(group, folders)
    rows = [(f"{name} (default)" if name in default.split(",") else name, _short(choice_of(group, name, folders)))
            for name in names]  # fmt: skip
    text = f"{group}: {summary}\n\n{_table(rows)}"
    of_default = [_listed(group, name, folders) for name in default.split(",") if name]
    known = default.split(",")
    others = [name for name in names if name not in known and (group == "experiment" or _listed(group, name, folders))]
    more = f"More about a choice: semaim run --help {group}={others[0]}" if others else ""
    return "\n\n".join(filter(None, [text, *of_default, more]))


def _choice(group: str, name: str, folders: Sequence[str]) -> str:
    """The help for a choice."""
    known = choices(group, folders)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--help {group}={name}: there is no {name} in {group}: {hint}choose from {', '.join(known)}")
    choice = choice_of(group, name, folders)
    if group == "experiment":
        return f"+experiment={name}, {quoted(choice.file or '')}:\n\n{choice.file.read_text() if choice.file else ''}"
    described = _wrapped(f"{group}={name}: {_short(choice)}", "", "  ")
    return "\n\n".join(filter(None, [described, _listed(group, name, folders)]))


def _listed(group: str, name: str, folders: Sequence[str]) -> str:
    """The options of a choice."""
    options = choice_of(group, name, folders).options
    shown = {key: {"": option} for key, option in options.items() if is_shown(key, option)}
    return f"With {group}={name}:\n\n{_table(_rows(shown))}" if shown else ""


def _rows(options: dict[str, dict[str, Option]]) -> Iterable[tuple[str, str]]:
    """Each option with its first value and comment."""
    return ((f"{name}={option.value}", option.comment) for name, of in options.items() for option in [*of.values()][:1])


def _option(name: str, of: dict[str, Option]) -> str:
    """The help for an option: the comment, the values, and those of other choices."""
    (choice, first), *rest = of.items()
    lines = [first.comment] if first.comment else []
    lines += [f"must be {first.kind.words}"] if first.kind else []
    lines += [f"this is the value with {choice}"] if choice else []
    others = [f"{each}: {option.value}" for each, option in rest if option.value != first.value]
    lines += ["with " + ", ".join(others)] if others else []
    return "\n".join([f"{name}={first.value}", *(_wrapped(line, "  ", "  ") for line in lines)])


def _short(choice: Choice) -> str:
    """The first paragraph of a description, with the file if it is the user's."""
    text = choice.description.split("\n\n")[0].replace("\n", " ")
    is_own = choice.file is not None and CONF not in (choice.file, *choice.file.parents)
    return f"{text} ({quoted(choice.file or '')})".strip() if is_own else text


def _table(rows: Iterable[tuple[str, str]], indent: int = 2) -> str:
    """Two columns; a long left one has a line of its own."""
    rows = list(rows)
    width = min(max((len(left) for left, _ in rows), default=0), 46) + 2
    lines = []
    for left, right in rows:
        place = " " * (indent + width)
        if len(left) > width - 2 and right:
            lines += [" " * indent + left, _wrapped(right, place, place)]
        else:
            lines.append(_wrapped(right, f"{' ' * indent}{left:<{width}}", place) if right else " " * indent + left)
    return "\n".join(lines)


def _wrapped(text: str, first: str, others: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False,
                         break_long_words=False)  # fmt: skip
