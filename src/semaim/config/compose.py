"""Composition of the configuration from command-line overrides, with Hydra."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from semaim.core.site import site_folder
from semaim.errors import UserError

T = TypeVar("T")
CONF = (Path(__file__).parents[1] / "conf").resolve()

# semaim's versions of Hydra's local launchers, under Hydra's names. They are stored here because Hydra would merge
# files of these names into the schemas that the plugins register; the plugins must be loaded first.
Plugins.instance()
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node={"_target_": "hydra_plugins.semaim_launchers.BasicSweeper", "params": None},
    provider="semaim",
)
LAUNCHERS_FILE = CONF / "hydra" / "local_launchers.yaml"
LOCAL_LAUNCHERS: Any = OmegaConf.to_container(OmegaConf.load(LAUNCHERS_FILE))
for _name, _node in LOCAL_LAUNCHERS.items():
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="semaim")


def options(group_choices: Sequence[str] = (), folders: Sequence[str] = ()) -> DictConfig:
    """The configuration with the given group choices and default options; it defines the options and their types.

    Args:
        group_choices: such as "model=aim_large".
        folders: additional configuration folders (Hydra's --config-dir).
    """
    return _options(tuple(group_choices), tuple(folders))


@lru_cache(maxsize=256)
def _options(group_choices: tuple[str, ...], folders: tuple[str, ...]) -> DictConfig:
    config = composition(group_choices, folders)
    OmegaConf.set_readonly(config, True)
    return config


def choices(group: str, folders: Sequence[str] = ()) -> list[str]:
    """The choices of a group, also those in the site's and in additional configuration folders."""
    stored = LOCAL_LAUNCHERS if group == "hydra/launcher" else ()
    return sorted({path.stem for root in roots(folders) for path in (root / group).glob("*.yaml")} | {*stored})


def roots(folders: Sequence[str] = ()) -> list[Path]:
    """The configuration folders, in the order in which a file is looked up: the site's, semaim's, additional ones."""
    site = site_folder()
    return [*([] if site is None else [site]), CONF, *map(folder_path, folders)]


def quoted_home(words: Sequence[str]) -> list[str]:
    """A command line in which values that begin with ~ or have other letters are quoted, as Hydra needs.

    `data.root=~/photos` reaches the program as typed: shells replace ~ only at the start of a word.
    """
    plain = r"[^'\"\\,\[\]{}()$\n]*"
    return [re.sub(rf"^([^~=]+)=(~[^'\n]*|{plain}[^\x00-\x7f]{plain})$", r"\1='\2'", word) for word in words]


def points(words: Sequence[str], folders: Sequence[str] = ()) -> list[list[str]]:
    """The command line of each run of a sweep.

    Args:
        words: its command line, without Hydra's own options.
        folders: additional configuration folders, for `permutation=glob(*)`.

    Raises:
        UserError: if there is none.
    """
    loader: Any = SimpleNamespace(get_group_options=lambda group, **_: choices(group, folders))  # as glob asks for them
    parsed = OverridesParser.create(loader).parse_overrides(list(words))
    (found,) = BasicSweeper.split_arguments(list({each.key_or_group: each for each in parsed}.values()), None)
    if not found:
        empty = [each.input_line for each in parsed if each.is_sweep_override() and not [*each.sweep_iterator()]]
        raise UserError(f"{' '.join(empty)} has no values")
    return found


def folder_path(folder: str) -> Path:
    """The path of an additional configuration folder, which Hydra may name by file://."""
    return Path(folder.removeprefix("file://"))


def named_folders(words: Sequence[str]) -> list[str]:
    """The folders that --config-dir names in a command line."""
    line = "\0".join(words)
    return re.findall(r"(?:^|\0)(?:-cd|--config-dir)[\0=]([^\0]+)", line)


def given_folders(hydra: Any) -> list[str]:
    """The folders of --config-dir, from Hydra's configuration."""
    return [f"file://{source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"]


def searched_folders(hydra: Any) -> list[str]:
    """The additional configuration folders of a composition: those of --config-dir and hydra.searchpath."""
    return [
        f"file://{source.path}"
        for source in hydra.runtime.config_sources
        if source.provider in ("command-line", "hydra.searchpath in command-line")
    ]


_remembered: dict[tuple[str, ...], Any] | None = None


@contextmanager
def unchanged_files() -> Iterator[None]:
    """Compose what many command lines share only once in this block, in which no configuration file may change."""
    global _remembered
    _remembered = {}
    try:
        yield
    finally:
        _remembered = None


def once(key: tuple[str, ...], make: Callable[[], T]) -> T:
    """The value that `make` returns, which is remembered in a block of `unchanged_files`."""
    if _remembered is None:
        return make()
    if key not in _remembered:
        _remembered[key] = make()
    value: T = _remembered[key]
    return value


def composition(overrides: Sequence[str], folders: Sequence[str] = (), return_hydra_config: bool = False) -> DictConfig:
    """The configuration of a command line."""
    if _remembered is not None and return_hydra_config:
        with suppress(HydraException, OmegaConfBaseException):  # the whole composition raises it again
            return _from_shared(overrides, folders)
    return _by_hydra(overrides, folders, return_hydra_config)


def _by_hydra(overrides: Sequence[str], folders: Sequence[str], return_hydra_config: bool = True) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        all_overrides = [*overrides, f"hydra.searchpath={list(folders)}"]
        return compose("config", overrides=all_overrides, return_hydra_config=return_hydra_config)


def _from_shared(overrides: Sequence[str], folders: Sequence[str]) -> DictConfig:
    """The same, from the composition of the choices alone: most of Hydra's time is for them, not for values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [each for each in parsed if not is_choice(each, folders)]
    choices = [each.input_line or "" for each in parsed if is_choice(each, folders)]
    shared = once(("choices", *choices, "in", *folders), lambda: _by_hydra(choices, folders))
    cfg = copy.deepcopy(shared)
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    of_task = [each for each in parsed if not each.is_hydra_override()]
    cfg.hydra.overrides.task = [each.input_line for each in of_task]
    how = cfg.hydra.job.config.override_dirname
    cfg.hydra.job.override_dirname = get_overrides_dirname(of_task, how.exclude_keys, how.item_sep, how.kv_sep)
    return cfg


def is_choice(override: Override, folders: Sequence[str]) -> bool:
    """Whether an override decides which files are composed, or how Hydra itself works."""
    group = override.key_or_group
    return group.startswith("hydra") or any((root / group).is_dir() for root in roots(folders))
