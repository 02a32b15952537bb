"""What would make jobs fail hours later, found before they are queued.

It takes exactly what `semaim run` takes, with `-m`, `then=[...]` and `hydra/launcher=...`. Every point of a
sweep, and every evaluation after it, is composed; its data are opened and an image of each part is read (data that a
run would download are downloaded); its networks are built without memory, but for the weights of a teacher, which are
fetched and read; its run folder, its tracking store and what it asks of SLURM are looked at. No run is started and no
run folder written. It prints a table of what each run is and costs, and a line for each problem.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import RANDOM
from semaim.config.compose import composition
from semaim.config.follow_ups import follow_ups
from semaim.config.messages import explain
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.core.distributed import Processes, choose_device
from semaim.core.files import nearest_existing, writable
from semaim.core.formatting import count, duration, plural
from semaim.data.image_data import ImageData
from semaim.errors import UserError
from semaim.lifecycle import stored_result
from semaim.preflight.estimate import TFLOPS, CheckReport, CheckRow, build_task, estimate, first_image, opened
from semaim.preflight.slurm_nodes import SlurmRequest, slurm_problems
from semaim.runs.folder import RunFolder
from semaim.tracking.store import unreachable

THEN = " then "


def check_sweep(
    points: Sequence[Sequence[str]],
    folders: Sequence[str] = (),
    launcher: Mapping[str, Any] | None = None,
    tflops: float = TFLOPS,
) -> CheckReport:
    """Look at every run of a sweep without starting any. A mistake at one point leaves the others to be looked at.

    Args:
        points: command line of each run, without Hydra's own options.
        folders: configuration folders besides our own.
        launcher: its options, resolved (cfg.hydra.launcher); None where this process computes by itself.
        tflops: TFLOP/s that a GPU sustains in training, for the GPU-hours.
    """
    before = GlobalHydra.instance().hydra  # composing replaces it, and a sweep may be under way in this process
    try:
        return _Check(folders, SlurmRequest.of(launcher or {}), tflops).run(points)
    finally:
        GlobalHydra.instance().hydra = before


class _Check:
    """One look at a sweep. What several runs share is looked at once."""

    def __init__(self, folders: Sequence[str], asked: SlurmRequest, tflops: float) -> None:
        self.folders, self.asked, self.tflops = folders, asked, tflops
        self.found: dict[str, list[str]] = {}  # messages, and the runs that each is about
        self.rows: list[CheckRow] = []
        self.data: dict[str, ImageData | Exception] = {}
        self.stores: dict[str, str | None] = {}
        self.places: set[Path] = set()

    def run(self, points: Sequence[Sequence[str]]) -> CheckReport:
        common = set.intersection(*map(set, points)) if len(points) > 1 else set(*points)
        labels = [" ".join(word for word in point if word not in common) for point in points]
        for point, label in zip(points, labels, strict=True):
            self.point(list(point), label)
        with self.noting(""):
            self.disk()
        problems = slurm_problems(self.asked)
        for message, where in self.found.items():
            # what is wrong with a run needs not be said of its evaluations too, nor of every run of a sweep
            runs = [run for run in dict.fromkeys(where) if THEN not in run or run.split(THEN)[0] not in where]
            named = [] if {*labels} <= {*runs} else [run.strip() for run in runs if run]
            shown = "; ".join(named[:3]) + (f"; and {len(named) - 3} more" if len(named) > 3 else "")
            problems.append(message + (f" [{shown}]" if named else ""))
        return CheckReport(problems, self.notes(), self.rows, len(points), self.asked.processes, self.tflops)

    @contextmanager
    def noting(self, run: str) -> Iterator[None]:
        """An error within is a problem of a run, and ends only what is within."""
        try:
            yield
        except Exception as error:  # also a fault of the program would end the job
            self.found.setdefault(in_a_line(error), []).append(run)

    def point(self, overrides: list[str], label: str) -> None:
        """A run, and the evaluations after it."""
        row = CheckRow(" ".join(overrides))
        self.rows.append(row)
        with self.noting(label):
            spec = compose_run_spec(overrides, self.folders)
            row.name = spec.cfg.run_name
            with self.noting(label):
                if (place := Path(spec.cfg.run_dir).absolute()) in self.places:
                    raise UserError(f"several points of this sweep are the same run, {spec.cfg.run_dir}: leave "
                                    f"run_name to be made of the options, and sweep over what differs")  # fmt: skip
                self.places.add(place)
            built = self.run_spec(spec, row, label, spec.cfg)
            for after in follow_ups(spec) if spec.cfg.then else []:
                self.rows.append(CheckRow(after.cfg.run_name))
                cfg = after.cfg.copy()  # with the encoder that its checkpoint will hold
                cfg.model, cfg.target, cfg.checkpoint = spec.cfg.model, spec.cfg.target, RANDOM
                self.run_spec(after, self.rows[-1], f"{label}{THEN}{after.choices['task']}", cfg if built else None)

    def run_spec(self, spec: RunSpec, row: CheckRow, label: str, built_as: DictConfig | None) -> bool:
        """Everything about a run, whose networks are built by a configuration (None: not at all); whether they were."""
        cfg, config = spec.cfg, spec.config
        with self.noting(label):
            self.device(cfg.device)
        with self.noting(label):
            self.folder(RunFolder(Path(config["run_dir"])), config, row)
        with self.noting(label):
            self.tracking(cfg)
        with self.noting(label):
            if config["seed"] < 0:
                raise UserError(f"seed={config['seed']} must not be negative")
        task: Any = None
        with self.noting(label):
            row.data = self.images(cfg)
            if built_as is not None:
                task = build_task(built_as, row.data)
                on_gpu = cfg.device != "cpu" and (self.asked.gpus > 0 or torch.cuda.is_available())
                row.cost = estimate(task, config["seed"], self.asked.processes, on_gpu)
                task.check(config["seed"], Processes(0, self.asked.processes, torch.device("cpu")))
        with self.noting(label):
            if (training := getattr(task, "training", None)) is not None:
                training.transform(first_image(training.images, training.max_unreadable))
        return task is not None

    def device(self, name: str) -> None:
        """Raise UserError if the device is not there, or not for every process."""
        kind, gpus, tasks = name.split(":")[0], self.asked.gpus, self.asked.tasks
        if kind not in ("auto", "cuda") or not (self.asked.slurm or torch.cuda.is_available()):
            choose_device(name)
        if kind == "cuda" and self.asked.slurm and not gpus:
            raise UserError(f"device={name}, but the launcher asks for no GPU: set hydra.launcher.gpus_per_node")
        if kind in ("auto", "cuda") and 0 < gpus < tasks:
            raise UserError(f"hydra.launcher.tasks_per_node={tasks} processes would share {gpus} GPUs: lower it")

    def folder(self, folder: RunFolder, config: dict[str, Any], row: CheckRow) -> None:
        """How far the run is; raise UserError if it cannot go on there."""
        row.state = "new"
        if not writable(folder.path):
            raise UserError(f"the run folder {folder.path} cannot be made: set runs_dir")
        if not (folder.path / "config.yaml").exists():
            return
        row.state = "of another configuration"
        folder.store_or_check_config(config)  # which writes nothing where there is one
        row.finished = stored_result(folder, config) is not None
        if not row.finished and folder.is_locked():
            raise UserError(f"the run folder {folder.path} is in use: wait for that run, or stop it")
        if saved := store.list_steps(folder.checkpoints):
            row.done = saved[-1][0]
        row.state = "finished" if row.finished else f"continues from step {row.done}" if row.done else "begins anew"

    def tracking(self, cfg: DictConfig) -> None:
        """Raise UserError if the tracking store is out of reach; asked once."""
        uri = getattr(instantiate(cfg.tracking, _convert_="all"), "uri", None)
        if uri is not None and uri not in self.stores:
            self.stores[uri] = unreachable(uri)
        if uri is not None and (reason := self.stores[uri]) is not None:
            raise UserError(f"tracking.uri={uri}: {reason}, or set tracking=none")

    def images(self, cfg: DictConfig) -> ImageData:
        """The data of a run, opened once for all that have the same."""
        key = json.dumps(OmegaConf.to_container(cfg.data, resolve=True), sort_keys=True)
        if key not in self.data:
            try:
                self.data[key] = opened(cfg.data)
            except Exception as error:  # which every run on these data is to meet
                self.data[key] = error
        if isinstance(found := self.data[key], Exception):
            raise found
        return found

    def disk(self) -> None:
        """Raise UserError if the checkpoints of new runs do not fit on the disk."""
        if not self.places:
            return
        there = nearest_existing(next(iter(self.places)))
        needed = sum(row.cost.checkpoints for row in self.rows if row.cost and row.state == "new")
        if needed > (free := shutil.disk_usage(there).free):
            raise UserError(f"the checkpoints will take {count(needed, 'B')}, but {there} has {count(free, 'B')} free: "
                            f"make room, or raise trainer.milestone_every_epochs")  # fmt: skip

    def notes(self) -> list[str]:
        """What will work, but perhaps not as it is meant."""
        notes, asked = [], self.asked
        if asked.gpus > asked.tasks:
            notes.append(
                f"of {asked.gpus} GPUs on each node, {plural(asked.tasks, 'process', 'es')} will use one each: "
                f"hydra.launcher.tasks_per_node={asked.gpus} would use them all"
            )
        longest = max((row.gpu_hours(self.tflops) for row in self.rows), default=0.0) * 3600 / asked.processes
        if asked.gpus and longest > (limit := asked.minutes * 60 * (1 + asked.options.get("max_num_timeout", 0))) > 0:
            notes.append(
                f"the longest run takes about {duration(longest)}, but is ended after {duration(limit)}: raise "
                f"hydra.launcher.timeout_min or hydra.launcher.max_num_timeout"
            )
        return notes


def in_a_line(error: Exception) -> str:
    """What is wrong, as its user is told, in one line; a fault of the program with its kind."""
    first, *others = (explain(error) or f"{type(error).__name__}: {error}").strip().splitlines()
    for line in filter(None, map(str.strip, others)):
        first += (" " if first.endswith((":", ".")) else "; ") + line
    return first


def expanded(
    words: Sequence[str], folders: Sequence[str], multirun: bool
) -> tuple[list[list[str]], dict[str, Any], list[str]]:
    """The command line of each run, the launcher's options (none for a run in this process), and what is wrong there.

    Raises:
        UserError: for a sweeper other than Hydra's basic one.
        hydra.errors.HydraException: for what cannot be parsed.
    """
    parser, problems = OverridesParser.create(), []
    parsed = parser.parse_overrides(list(words))
    of_hydra = [str(each.input_line) for each in parsed if each.is_hydra_override()]
    own = [str(each.input_line) for each in parsed if not each.is_hydra_override()]
    fixed = [str(each.input_line) for each in parsed if not each.is_hydra_override() and not each.is_sweep_override()]
    try:
        cfg = composition([*of_hydra, *fixed], folders, return_hydra_config=True).hydra
    except Exception:  # a mistake in a run's options is told with the run
        try:
            cfg = composition(of_hydra, folders, return_hydra_config=True).hydra
        except Exception as error:
            problems.append(in_a_line(error))
            cfg = composition((), folders, return_hydra_config=True).hydra
    if not (multirun or cfg.mode == RunMode.MULTIRUN or any(word.startswith("hydra/launcher=") for word in of_hydra)):
        return [own], {}, problems
    if not cfg.sweeper._target_.endswith("BasicSweeper"):
        raise UserError(
            f"hydra/sweeper={cfg.sweeper._target_}: only the points of Hydra's basic sweeper are known here"
        )
    swept = [f"{key}={value}" for key, value in (cfg.sweeper.params or {}).items()]
    (points,) = BasicSweeper.split_arguments(parser.parse_overrides([*swept, *own]), None)
    told = {"name", "submitit_folder"}  # what they are, Hydra knows only once it launches
    return points, {key: cfg.launcher[key] for key in cfg.launcher if key not in told}, problems


def check_command_line(
    overrides: Sequence[str], multirun: bool = False, config_dir: Path | None = None, tflops: float | None = None
) -> CheckReport:
    """Check what a command line asks for.

    Args:
        overrides: options of the run, as `semaim run` takes them.
        multirun: whether they are a sweep.
        config_dir: a configuration folder besides our own.
        tflops: TFLOP/s that a GPU sustains in training; None for the usual.

    Raises:
        UserError: for an option that makes no sense.
        hydra.errors.HydraException: for what cannot be parsed.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder")
    if tflops is not None and not tflops > 0:
        raise UserError(f"--tflops {tflops:g} must be positive")
    folders = [] if config_dir is None else [f"file://{config_dir.absolute()}"]
    points, launcher, problems = expanded(overrides, folders, multirun)
    checked = check_sweep(points, folders, launcher, tflops or TFLOPS)
    checked.problems[:0] = problems
    return checked
