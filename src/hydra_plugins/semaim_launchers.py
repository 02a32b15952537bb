"""Hydra plugins: semaim's launchers and the user's configuration folder. `semaim.sweeps` implements the launchers.

Every program that uses Hydra in this environment imports this file, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from semaim.core.site import site_folder

CONF = Path(__file__).resolve().parents[1] / "semaim" / "conf"


class SiteFolder(SearchPathPlugin):  # type: ignore[misc]
    """Prepends the site's folder, so that its files are found, in place of semaim's of the same names.

    Hydra calls it in every program of this environment; only those that compose semaim's configuration get the folder.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        mains = [path.path for path in search_path.get_path() if path.provider == "main" and path.path is not None]
        if not any(Path(main.removeprefix("file://")).resolve() == CONF.resolve() for main in mains):
            return
        if (folder := site_folder()) is not None:
            search_path.prepend("semaim-site", f"file://{folder}")


class SweepLauncher(Launcher):  # type: ignore[misc]
    """Passes a sweep to `semaim.sweeps`."""

    executor: ClassVar[Literal["basic", "local", "slurm"]]
    config: DictConfig  # given to setup, which Hydra calls before launch

    def __init__(self, **options: Any) -> None:
        self.options: Any = OmegaConf.to_container(OmegaConf.create(options), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from semaim.sweeps.launcher import launch

        return launch(self.executor, self.options, self.config, job_overrides)


class BasicSweeper(basic_sweeper.BasicSweeper):  # type: ignore[misc]
    """Hydra's sweeper, which writes no file of its own before the runs are checked, and takes all of them at once."""

    def __init__(self, params: Any = None) -> None:
        super().__init__(None, params)

    def sweep(self, arguments: list[str]) -> Any:
        from semaim.config.compose import given_folders, points

        job_overrides = points([*self._parse_config(), *arguments], given_folders(self.config.hydra))
        results = self.launcher.launch(job_overrides, 0)
        for result in results:
            _ = result.return_value  # raises the error of a run
        return results


class BasicLauncher(SweepLauncher):
    """Runs one after the other in this process."""

    executor = "basic"


class LocalLauncher(SweepLauncher):
    """Runs as parallel processes on this machine."""

    executor = "local"


class SlurmLauncher(SweepLauncher):
    """Runs as jobs of a SLURM cluster."""

    executor = "slurm"
