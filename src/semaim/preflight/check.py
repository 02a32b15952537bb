"""Checks of runs and sweeps before they are queued, for problems that would make jobs fail hours later.

The arguments are exactly those of `semaim run`, with `-m`, `then=[...]` and `hydra/launcher=...`. Every point of a
sweep, and every follow-up evaluation, is composed. Its data are opened and an image of each part is read (data that a
run would download are downloaded). Its networks are built without memory; only the weights of a teacher are fetched and
read. Its run folder, tracking store and SLURM request are checked. No run is started and no run folder is written. The
result is a table of runs and costs, and a line for each problem.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import RANDOM
from semaim.config.effects import without_effect
from semaim.config.follow_ups import follow_ups
from semaim.config.messages import one_line
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.core.distributed import Processes, choose_device
from semaim.core.files import nearest_existing, writable
from semaim.core.formatting import count, duration, plural
from semaim.core.store_address import SQLITE
from semaim.data.image_data import ImageData
from semaim.data.transforms import TRAINING
from semaim.errors import UserError
from semaim.lifecycle import check_apart, stored_result
from semaim.preflight.shapes import build_task, open_data, try_transform
from semaim.preflight.slurm_answer import refusals
from semaim.preflight.slurm_nodes import SlurmRequest, slurm_problems
from semaim.preflight.table import CheckReport, CheckRow
from semaim.runs.folder import RunFolder, as_begun
from semaim.tasks.task import Task
from semaim.tracking.store import unreachable
from semaim.training.extension import check_extension
from semaim.training.step import TrainingTask

THEN = " then "
TFLOPS = 120.0  # sustained by a GPU in training: 40 % of an A100's 312 in bf16


def check_sweep(
    points: Sequence[Sequence[str]],
    folders: Sequence[str] = (),
    launcher: Mapping[str, Any] | None = None,
    tflops: float = TFLOPS,
    fetch: bool = False,
    ask_slurm: Callable[[Mapping[str, Any], int], str] | None = None,
) -> CheckReport:
    """Check every run of a sweep without starting any. A problem of one point does not affect the check of the others.

    Args:
        points: command line of each run, without Hydra's own options.
        folders: additional configuration folders.
        launcher: its options, resolved (cfg.hydra.launcher); None for runs in this process.
        tflops: TFLOP/s that a GPU sustains in training, for the GPU-hours.
        fetch: download the data and teachers that the runs would; else nothing is written.
        ask_slurm: what SLURM says against that many jobs of a launcher (`semaim.sweeps.trial.sbatch_answer`).
    """
    previous = GlobalHydra.instance().hydra  # composing replaces it, and this process may be running a sweep
    try:
        return _SweepCheck(folders, SlurmRequest.of(launcher or {}), tflops, fetch).run(points, ask_slurm)
    finally:
        GlobalHydra.instance().hydra = previous


class _SweepCheck:
    """One check of a sweep. Data and stores shared by several runs are checked once."""

    def __init__(self, folders: Sequence[str], request: SlurmRequest, tflops: float, fetch: bool) -> None:
        self.folders, self.request, self.tflops, self.fetch = folders, request, tflops, fetch
        self.messages: dict[str, list[str]] = {}  # messages, and the runs with this problem
        self.useless: dict[str, None] = {}  # options without effect, in the order of their first run
        self.rows: list[CheckRow] = []
        self.data: dict[str, ImageData | Exception | None] = {}  # None: a run downloads them
        self.unreachable = functools.cache(unreachable)
        self.run_dirs: set[Path] = set()

    def run(
        self, points: Sequence[Sequence[str]], ask_slurm: Callable[[Mapping[str, Any], int], str] | None
    ) -> CheckReport:
        common = set.intersection(*map(set, points)) if len(points) > 1 else set(*points)
        labels = [" ".join(word for word in point if word not in common) for point in points]
        self.is_sweep = len(points) > 1 or self.request.slurm
        for point, label in zip(points, labels, strict=True):
            self.check_point(list(point), label)
        with self.recording(""):
            self.check_disk()
        problems, asked = slurm_problems(self.request), list[str]()
        if ask_slurm is not None and self.request.slurm and all(each.startswith("hydra") for each in problems):
            with self.recording(""):
                answer = ask_slurm(self.request.options, len(points))
                further, asked = refusals(answer, self.request.options, problems)
                problems += further
        for message, where in self.messages.items():
            # a problem of a run is not repeated for its evaluations; one of all runs is shown without their names
            runs = [run for run in dict.fromkeys(where) if THEN not in run or run.split(THEN)[0] not in where]
            named = [] if {*labels} <= {*runs} else [run.strip() for run in runs if run]
            shown = "; ".join(named[:3]) + (f"; and {len(named) - 3} more" if len(named) > 3 else "")
            problems.append(message + (f" [{shown}]" if named else ""))
        return CheckReport(problems, self.notes() + asked, self.rows, len(points), self.request.processes, self.tflops)

    @contextmanager
    def recording(self, run: str) -> Iterator[None]:
        """Record an error in this block as a problem of a run; the check continues after the block."""
        try:
            yield
        except Exception as error:  # also faults of the program, which would end the job
            self.messages.setdefault(one_line(error), []).append(run)

    def check_point(self, overrides: list[str], label: str) -> None:
        """Check a run and its follow-up evaluations."""
        row = CheckRow(" ".join(overrides))
        self.rows.append(row)
        with self.recording(label):
            spec = as_begun(compose_run_spec(overrides, self.folders))
            row.name = spec.cfg.run_name
            self.useless |= dict.fromkeys(without_effect(spec.cfg, overrides, self.is_sweep))
            with self.recording(label):
                if (run_dir := Path(spec.cfg.run_dir).absolute()) in self.run_dirs:
                    raise UserError(f"several points of this sweep are the same run, {spec.cfg.run_dir}: leave "
                                    f"run_name at its default, and sweep over what differs")  # fmt: skip
                self.run_dirs.add(run_dir)
            built = self.check_run(spec, row, label, spec.cfg)
            for follow_up in map(as_begun, follow_ups(spec) if spec.cfg.then else []):
                self.rows.append(CheckRow(follow_up.cfg.run_name))
                cfg = follow_up.cfg.copy()  # with the encoder of its future checkpoint
                cfg.model, cfg.target, cfg.checkpoint = spec.cfg.model, spec.cfg.target, RANDOM
                self.check_run(
                    follow_up, self.rows[-1], f"{label}{THEN}{follow_up.choices['task']}", cfg if built else None
                )

    def check_run(self, spec: RunSpec, row: CheckRow, label: str, network_cfg: DictConfig | None) -> bool:
        """Check a run, with networks built from `network_cfg` (None: not built); returns whether they were built."""
        cfg, config = spec.cfg, spec.config
        with self.recording(label):
            self.check_device(cfg.device)
        with self.recording(label):
            self.check_folder(RunFolder(Path(config["run_dir"])), config, row)
        with self.recording(label):
            check_extension(RunFolder(Path(config["run_dir"])), config)
        with self.recording(label):
            self.check_tracking(cfg)
        task: Task | None = None
        with self.recording(label):
            row.data = self.data_of(cfg)
            if network_cfg is not None and row.data is not None:
                task = build_task(network_cfg, row.data)
                on_gpu = cfg.device != "cpu" and (self.request.gpus > 0 or torch.cuda.is_available())
                row.cost = task.cost(self.request.processes, on_gpu)
                processes = Processes(0, self.request.processes, torch.device("cpu"))
                task.spec = spec
                task.check(config["seed"], processes)
                if self.fetch:
                    task.load(processes)
        with self.recording(label):
            if isinstance(task, TrainingTask):
                training = task.training
                try_transform(training.transform, training.images, training.max_unreadable, TRAINING)
        return task is not None

    def check_device(self, name: str) -> None:
        """Raise UserError if the device does not exist, or not for every process."""
        kind, gpus, tasks = name.split(":")[0], self.request.gpus, self.request.tasks
        if kind not in ("auto", "cuda") or not (self.request.slurm or torch.cuda.is_available()):
            choose_device(name)
        if kind == "cuda" and self.request.slurm and not gpus:
            raise UserError(f"device={name}, but the launcher asks for no GPU: set hydra.launcher.gpus_per_node")
        if kind in ("auto", "cuda") and 0 < gpus < tasks:
            raise UserError(f"hydra.launcher.tasks_per_node={tasks} processes would share {gpus} GPUs: lower it")

    def check_folder(self, folder: RunFolder, config: dict[str, Any], row: CheckRow) -> None:
        """Set the run's state in the table; raise UserError if it cannot start or continue in its folder."""
        row.state = folder.state()
        if not writable(folder.path):
            raise UserError(f"the run folder {folder.path} cannot be made: set runs_dir")
        check_apart(folder, config)
        if not (folder.path / "config.yaml").exists():
            return
        folder.store_or_check_config(config)  # compares only: the file exists
        row.finished = stored_result(folder, config) is not None
        if not row.finished and folder.is_locked():
            raise UserError(f"the run folder {folder.path} is in use: wait for that run, or stop it")
        if saved := store.list_steps(folder.checkpoints):
            row.done = saved[-1][0]
        if not row.finished and row.state != "new":
            row.action = f"continues from step {row.done}" if row.done else "begins anew"

    def check_tracking(self, cfg: DictConfig) -> None:
        """Raise UserError if the tracking store is unreachable; each store is checked once."""
        address = getattr(instantiate(cfg.tracking, _convert_="all"), "address", None)
        if address is not None and (reason := self.unreachable(address)) is not None:
            later = ", or deliver later (sweep.check=false)" * (self.is_sweep and not address.startswith(SQLITE))
            raise UserError(f"tracking.uri={cfg.tracking.uri}: {reason}, or set tracking=none{later}")

    def data_of(self, cfg: DictConfig) -> ImageData | None:
        """The data of a run, None if it downloads them; data shared by several runs are opened once."""
        key = json.dumps(OmegaConf.to_container(cfg.data, resolve=True), sort_keys=True)
        if key not in self.data:
            try:
                self.data[key] = open_data(cfg.data, self.fetch)
            except Exception as error:  # raised again for every run with these data
                self.data[key] = error
        if isinstance(data := self.data[key], Exception):
            raise data
        return data

    def check_disk(self) -> None:
        """Raise UserError if the checkpoints of new runs do not fit on the disk."""
        if not self.run_dirs:
            return
        folder = nearest_existing(next(iter(self.run_dirs)))
        needed = sum(row.cost.checkpoints for row in self.rows if row.cost and row.state == "new")
        if needed > (free := shutil.disk_usage(folder).free):
            raise UserError(f"the checkpoints will take {count(needed, 'B')}, but {folder} has {count(free, 'B')} "
                            f"free: make room, or raise trainer.milestone_every_epochs")  # fmt: skip

    def notes(self) -> list[str]:
        """Notes on what works, but may not be intended."""
        notes, request = list(self.useless), self.request
        if None in self.data.values():
            notes.append("the runs will download their data, which cannot be checked yet: --fetch downloads them now")
        if request.gpus > request.tasks:
            notes.append(
                f"of {request.gpus} GPUs on each node, {plural(request.tasks, 'process', 'es')} will use one each: "
                f"hydra.launcher.tasks_per_node={request.gpus} would use them all"
            )
        longest = max((row.gpu_hours(self.tflops) for row in self.rows), default=0.0) * 3600 / request.processes
        if (
            request.gpus
            and longest > (limit := request.minutes * 60 * (1 + request.options.get("max_num_timeout", 0))) > 0
        ):
            notes.append(
                f"the longest run takes about {duration(longest)}, but is ended after {duration(limit)}: raise "
                f"hydra.launcher.timeout_min or hydra.launcher.max_num_timeout"
            )
        return notes
