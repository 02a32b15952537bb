"""The command line of `semaim check`: the runs that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from semaim.config.compose import composition, points, quoted_home
from semaim.config.messages import one_line
from semaim.config.validate import check_launcher
from semaim.errors import UserError
from semaim.preflight.check import TFLOPS, check_sweep
from semaim.preflight.table import CheckReport


def expand(
    words: Sequence[str], folders: Sequence[str], multirun: bool
) -> tuple[list[list[str]], dict[str, Any], list[str]]:
    """The command line of each run, the launcher's options (none for runs in this process), and their problems.

    Raises:
        UserError: for a sweeper other than Hydra's basic one.
        hydra.errors.HydraException: for what cannot be parsed.
    """
    parser, problems = OverridesParser.create(), []
    parsed = parser.parse_overrides(list(words))
    hydra_overrides = [str(each.input_line) for each in parsed if each.is_hydra_override()]
    own = [each for each in parsed if not each.is_hydra_override()]
    own_overrides = [str(each.input_line) for each in own]
    not_swept = [str(each.input_line) for each in own if not each.is_sweep_override()]
    cfg: Any = None
    for tried in ([*hydra_overrides, *not_swept], hydra_overrides, []):
        try:
            cfg = composition(tried, folders, return_hydra_config=True).hydra
            break
        except Exception as error:
            if tried is hydra_overrides:  # mistakes in a run's options are reported with the run
                problems.append(one_line(error))
    if not (
        multirun or cfg.mode == RunMode.MULTIRUN or any(word.startswith("hydra/launcher=") for word in hydra_overrides)
    ):
        return [own_overrides], {}, problems
    if not cfg.sweeper._target_.endswith("BasicSweeper"):
        raise UserError(
            f"hydra/sweeper={cfg.sweeper._target_}: only the points of Hydra's basic sweeper can be checked"
        )
    swept = [f"{key}={value}" for key, value in (cfg.sweeper.params or {}).items()]
    no_options = {"_target_", "name", "submitit_folder"}  # Hydra sets them at launch
    options = {key: cfg.launcher[key] for key in cfg.launcher if key not in no_options}
    launcher: Any = OmegaConf.to_container(OmegaConf.create(options))
    return points([*swept, *own_overrides], folders), launcher, problems


def check_command_line(
    overrides: Sequence[str],
    multirun: bool = False,
    config_dir: Path | None = None,
    tflops: float | None = None,
    fetch: bool = False,
    ask_slurm: Callable[[Mapping[str, Any], int], str] | None = None,
) -> CheckReport:
    """Check the runs of a command line.

    Args:
        overrides: options of the run, as for `semaim run`.
        multirun: whether they are a sweep.
        config_dir: an additional configuration folder.
        tflops: TFLOP/s that a GPU sustains in training; None for the default.
        fetch, ask_slurm: see `check_sweep`.

    Raises:
        UserError: for an invalid option.
        hydra.errors.HydraException: for what cannot be parsed.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder")
    if tflops is not None and not tflops > 0:
        raise UserError(f"--tflops {tflops:g} must be positive")
    folders = [] if config_dir is None else [f"file://{config_dir.absolute()}"]
    points, launcher, problems = expand(quoted_home(overrides), folders, multirun)
    check_launcher(launcher)
    checked = check_sweep(points, folders, launcher, tflops or TFLOPS, fetch, ask_slurm)
    checked.problems[:0] = problems
    return checked
