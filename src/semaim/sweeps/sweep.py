"""A sweep and its points, stored in a folder next to the run folders.

runs/<sweep>/sweep.json       command, launcher, points, and the job of each
             config.yaml      parameters of the MLflow parent run
             metrics.jsonl    its journal (see `semaim.runs.journal`)
             submitted/       the configuration of each run, as it was at the submission of its job
             code/            copies of the sources, for the jobs (see `semaim.sweeps.snapshot`)
             jobs/<job id>/   output of each job, by process; errors and killed processes
             results.csv      final state and results of every point
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.config.follow_ups import follow_ups, with_parent
from semaim.config.naming import other_overrides
from semaim.config.run_spec import RunSpec, StoredSpec, compose_run_spec
from semaim.core.files import read_json, write_json, writing
from semaim.errors import DamagedFile, UserError
from semaim.runs.folder import RunFolder
from semaim.runs.provenance import CodeVersion

Executor = Literal["basic", "local", "slurm"]
FILE = "sweep.json"
LINK = ".semaim-"  # start of the name of a link (`semaim.sweeps.batch_script`)


@dataclass
class Point:
    """One run of a sweep.

    Attributes:
        overrides: its command line.
        run_dir: its run folder.
        parent: folder of the sweep or run that is its parent in MLflow; null for none.
        after: index of the point that must finish successfully before this one starts.
        job: id of its last submitted job.
        then: run folders of the follow-up runs in the same job.
        sweep: folder of the sweep that submitted this job, if it is another one.
    """

    overrides: list[str]
    run_dir: str
    parent: str | None = None
    after: int | None = None
    job: str | None = None
    then: list[str] = field(default_factory=list)
    sweep: str | None = None

    def fits(self, index: int) -> bool:
        """Whether its values are such as this program writes for the point of this index."""
        paths = [self.run_dir, *self.then, *(path for path in (self.parent, self.sweep) if path is not None)]
        return (
            (self.after is None or 0 <= self.after < index)
            and (self.job is None or re.fullmatch(r"\w+", self.job) is not None)
            and all(path.startswith("/") and "\0" not in path for path in paths)
        )

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return Path(self.run_dir).name

    @property
    def place(self) -> str:
        """Its run folder without symbolic links: two points with the same one are the same run."""
        return os.path.realpath(self.run_dir)

    @property
    def folder(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(Path(self.run_dir))

    def take_over(self, other: Point, sweep: str | None) -> None:
        """Have the job of another point of the same run, which a sweep submitted (None: the one of this point)."""
        self.run_dir, self.job, self.sweep, self.parent = other.run_dir, other.job, sweep, other.parent

    @property
    def follow_ups(self) -> list[RunFolder]:
        """Run folders of the follow-up runs in the same job."""
        return [RunFolder(Path(run_dir)) for run_dir in self.then]


@dataclass
class Sweep:
    """A sweep.

    Attributes:
        path: its folder.
        executor: what runs its jobs.
        launcher: the launcher's options.
        points: its runs.
        restarts: how often a job with killed processes is restarted.
        command, cwd, folders: the command as typed, its working directory, and additional configuration folders.
        code: its version at submission.
        snapshot: whether its jobs import a copy of the code; None: if they are SLURM's.
        copied: this copy, if there is one.
    """

    executor: Executor
    launcher: dict[str, Any]
    points: list[Point]
    restarts: int
    command: str
    path: Path = field(default=Path(), kw_only=True)  # not stored
    cwd: str = field(default_factory=lambda: str(Path.cwd()))
    folders: list[str] = field(default_factory=list)
    code: dict[str, Any] = field(default_factory=dict)
    snapshot: bool | None = None
    copied: str | None = None

    @cached_property
    def folder(self) -> RunFolder:
        """Its folder, as the run folder of the MLflow parent run."""
        return RunFolder(self.path)

    @property
    def run_dirs(self) -> list[Path]:
        """The run folders of its points, and of what follows them in the same job."""
        return [Path(run_dir) for point in self.points for run_dir in (point.run_dir, *point.then)]

    @property
    def jobs(self) -> Path:
        """Folder of the output of jobs, in a folder for each."""
        return self.path / "jobs"

    def job_folder(self, point: Point) -> Path:
        """Folder of the output of a point's job."""
        return Path(point.sweep or self.path) / "jobs" / (point.job or "")

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a sweep from its folder.

        Raises:
            UserError: if the folder is not a sweep's, or the file is damaged.
        """
        remedy = "move it away, then type the command of the sweep again"
        if (sweep := read_json(path / FILE, cls, remedy)) is None:
            raise UserError(f"{path} is not the folder of a sweep: it has no {FILE}")
        if not sweep.points:
            raise DamagedFile(path / FILE, "it has no points", remedy)
        for index, point in enumerate(sweep.points):
            if not point.fits(index):
                raise DamagedFile(path / FILE, f"point {index} names no job, run folder or earlier point", remedy)
        sweep.path = path.absolute()
        return sweep

    def save(self) -> None:
        """Write the sweep to its folder."""
        with writing(self.path / FILE):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / FILE, {key: value for key, value in asdict(self).items() if key != "path"})

    def stored_runs(self, point: Point) -> Path:
        """File of the runs of a point: its configuration does not change while its job waits or runs."""
        unique = hashlib.sha256(point.run_dir.encode()).hexdigest()[:8]  # runs_dir may be swept, too
        return Path(point.sweep or self.path) / "submitted" / f"{point.name}-{unique}.json"

    def store_runs(self, point: Point, specs: Sequence[RunSpec]) -> None:
        """Fix the configurations of a point's runs.

        Raises:
            CannotWrite: if the file cannot be written.
        """
        stored = [spec.stored() for spec in specs]
        stored[0]["config"] = stored[0]["config"] | {"parent_run": point.parent}
        path = self.stored_runs(point)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"runs": stored, "code": self.code})

    def runs(self, point: Point) -> list[RunSpec]:
        """The run of a point, and its follow-up runs in the same job, as they were submitted."""
        if (submitted := read_submitted(self.stored_runs(point))) is not None:
            return [RunSpec.of(each) for each in submitted["runs"]]
        spec = compose_run_spec(point.overrides, self.folders)  # submitted by a version that did not store them
        if point.parent is not None:
            spec = with_parent(spec, point.parent)
        return [spec] if self.executor == "slurm" else [spec, *follow_ups(spec)]


class Submitted(TypedDict):
    """Content of submitted/<name>.json: the runs of a job, and the code at their submission."""

    runs: list[StoredSpec]
    code: CodeVersion


def read_submitted(path: Path) -> Submitted | None:
    """The runs of a job; None if there is no such file.

    Raises:
        DamagedFile: if it cannot be read.
    """
    return read_json(path, Submitted, "move it away, then type the command of the sweep again")


def failure_file(job_folder: Path, attempt: int) -> Path:
    """File for the error of the process that fails first in an attempt of a job."""
    return job_folder / f"failure_{attempt:04d}.json"


def make_points(
    job_overrides: Sequence[Sequence[str]], folders: Sequence[str], dependent: bool
) -> tuple[list[Point], list[list[RunSpec]]]:
    """The points of a sweep, and the runs of each.

    Args:
        job_overrides: the command line of each run.
        folders: additional configuration folders.
        dependent: whether follow-up runs (`then=...`) are points of their own.

    Raises:
        UserError: if two points are the same run, or for what `compose_run_spec` refuses.
    """
    points: list[Point] = []
    runs: list[list[RunSpec]] = []
    for overrides in job_overrides:
        spec = compose_run_spec(list(overrides), folders)
        point, first, followers = Point(list(spec.overrides), _run_dir(spec)), len(points), follow_ups(spec)
        points.append(point)
        if dependent:
            points += [Point(list(each.overrides), _run_dir(each), point.run_dir, first) for each in followers]
            runs += [[each] for each in (spec, *followers)]
        else:
            point.then = [_run_dir(each) for each in followers]
            runs.append([spec, *followers])
    run_dirs = [point.run_dir for point in points]
    if duplicates := sorted({run_dir for run_dir in run_dirs if run_dirs.count(run_dir) > 1}):
        raise UserError(
            f"several points of this sweep are the same run, {duplicates[0]}: leave run_name at its default"
        )
    return points, runs


def _run_dir(spec: RunSpec) -> str:
    return str(Path(spec.cfg.run_dir).absolute())


def labels(sweep: Sweep) -> list[str]:
    """A label for each point: the options that distinguish it."""
    same = common(sweep.points)
    names: list[str] = []
    for point in sweep.points:
        if point.after is not None:
            names.append(f"{names[point.after]}, {point.overrides[0]}")
        else:
            names.append(" ".join(each for each in point.overrides if each not in same) or point.name)
    return names


def swept(sweep: Sweep) -> dict[str, list[str]]:
    """The swept options: each option that differs between the points, and its values."""
    same = common(sweep.points)
    axes: dict[str, dict[str, None]] = {}
    for override in (each for point in sweep.points if point.after is None for each in point.overrides):
        if override not in same:
            key, _, value = override.partition("=")
            axes.setdefault(key, {})[value] = None
    return {key: list(values) for key, values in axes.items()}


def common(points: Sequence[Point]) -> set[str]:
    """The overrides that all points share, except follow-up runs."""
    return set[str].intersection(*(set(point.overrides) for point in points if point.after is None))


def sweep_name(points: Sequence[Point], overrides: Sequence[str]) -> str:
    """The name of a sweep: swept options and a checksum. It is stable, so that the same command finds its jobs again.

    Args:
        points: its points.
        overrides: its command line, with comma-separated sweep values.
    """
    if sum(point.after is None for point in points) == 1:
        return f"sweep_{points[0].name}"
    same = {override.split("=")[0] for override in common(points)}
    everything = other_overrides((), overrides)
    swept = "_".join(override for override in everything if override.split("=")[0] not in same)
    readable = re.sub(r"[^A-Za-z0-9_.+-]+", "-", swept)[:60].strip("-")
    return f"sweep_{readable}-{hashlib.sha256('_'.join(everything).encode()).hexdigest()[:8]}"
