"""What the command line may say, and what a person is told when it says something else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from semaim.errors import UserError
from semaim.runfolder import flatten

CONF = (Path(__file__).parent / "conf").resolve()


def known_options() -> DictConfig:
    """The configuration without any override, whose keys are all the options there are."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config")


def suggestion(key: str, config: DictConfig) -> str:
    """The options nearest to a misspelt one, and those beside it."""
    container = OmegaConf.to_container(config, resolve=False)
    parent, _, _ = key.rpartition(".")
    node: Any = container
    for part in parent.split(".") if parent else ():
        node = node.get(part, {}) if isinstance(node, dict) else {}
    beside = [name for name in sorted(node) if not name.startswith("_")] if isinstance(node, dict) else []
    dotted = {f"{parent}.{name}" if parent else name for name in beside}
    near = difflib.get_close_matches(key, sorted(dotted | set(flatten(container))), n=3, cutoff=0.6)
    parts = []
    if near:
        parts.append(f"did you mean {' or '.join(near)}?")
    if beside:
        parts.append(f"{parent or 'at the top'} has: {', '.join(beside)}")
    return "; ".join(parts) or "see python -m semaim.run --cfg job"


def check_overrides(overrides: Sequence[str], config: DictConfig) -> None:
    """Refuse `+option=value`, which Hydra would add although nothing reads it, unless it adds a config group.

    Raises:
        UserError: naming the option and its neighbours.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if not override.is_add() or key.startswith("hydra") or (CONF / key).is_dir():
            continue
        raise UserError(f"+{key}: there is no option {key}. {suggestion(key, known_options())}")
    allowed = set(known_options())
    if unknown := sorted(str(key) for key in set(config) - allowed):
        raise UserError(f"{unknown[0]}: there is no option {unknown[0]}. {suggestion(unknown[0], known_options())}")


def explain(error: BaseException) -> str | None:
    """The message for an error that its user can mend, or None if it is a fault of the program."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"there is no option {match[1]}. {suggestion(match[1], known_options())}"
    if match := re.search(r"Missing mandatory value: .*?full_key: (\S+)", text, re.DOTALL):
        return f"{match[1]} must be given: {match[1]}=..."
    if match := re.search(r"unexpected keyword argument '(\w+)'.*?full_key: (\S+)", text, re.DOTALL):
        return f"there is no option {match[2].removeprefix('task.')}.{match[1]}: nothing takes it"
    if any(isinstance(link, HydraException) or type(link).__module__.startswith("omegaconf") for link in chain):
        return str(error).split("\nConfig search path:")[0].strip()
    return None
