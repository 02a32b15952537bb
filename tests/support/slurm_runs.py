"""Runs as jobs of the one-machine cluster: submitting, observing and disturbing them."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.commands import ENVIRONMENT, RUN, SMALL, finished, journal, status
from support.paced import PACE, PACED, import_path, set_pace
from support.waiting import PATIENCE, wait_for

# Drop path and a moving average, so that random state and EMA matter. With or without tracking.
SMALL_ANYHOW = tuple(option for option in SMALL if not option.startswith("tracking"))
CAREFUL = (*SMALL_ANYHOW, *PACED, "model.drop_path=0.1", "trainer.ema=true")
SIXTY = (*CAREFUL, "trainer.max_steps=60", "trainer.save_every_steps=5")
BATCH_SIZE = 16
ON_CPU = ("hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1")
TWO_BY_TWO = (*ON_CPU, "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=2")
SUBMIT = ("sweep.check=false", "sweep.wait=false")
LEFT_ALONE = (*SMALL_ANYHOW, *ON_CPU, "trainer.save_every_steps=20", "tracking=mlflow", *SUBMIT)


def on_node(name: str) -> tuple[str, ...]:
    """Launcher option for one node."""
    return (f"+hydra.launcher.additional_parameters.nodelist={name}",)


@dataclass
class JobRun:
    """A run as a job of a cluster, or as a task of an array.

    Attributes:
        cluster: the cluster.
        home: working directory of its command.
        name: of the run.
        overrides: its command line, including the launcher.
        processes: number of processes per step.
        array: name of its sweep, if it is one of several.
        task: its index there.
    """

    cluster: Any
    home: Path
    name: str
    overrides: Sequence[str]
    processes: int = 1
    array: str = ""
    task: int = 0

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.name

    @property
    def sweep(self) -> Path:
        return self.home / "runs" / (self.array or f"sweep_{self.name}")

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.environment | import_path() | {PACE: str(self.pace_file)}

    @property
    def pace_file(self) -> Path:
        return self.home / f"{self.array or self.name}.pace"

    @property
    def job(self) -> str:
        """Id of the last submitted job."""
        return json.loads((self.sweep / "sweep.json").read_text())["points"][self.task]["job"]

    @property
    def job_folder(self) -> Path:
        """Output folder of its job."""
        return self.sweep / "jobs" / self.job

    def run_semaim(self, *command: str, expect: int | None = 0) -> str:
        """Run a semaim command in the run's working directory and return its output."""
        return run_semaim(self, self.home, *command, expect=expect)

    def submit(self, seconds_per_step: float = 0.0, *more: str) -> str:
        """Submit the run with this pace and return the job id."""
        self.pace(seconds_per_step)
        named = ("-m", f"sweep.name={self.array}") if self.array else (f"run_name={self.name}",)
        self.run_semaim(RUN[-1], *named, *self.overrides, *SUBMIT, *more)
        return self.job

    def pace(self, seconds_per_step: float) -> None:
        """Set the minimum time per step from now on."""
        set_pace(self.pace_file, seconds_per_step * self.processes / BATCH_SIZE)

    def at_full_speed(self) -> None:
        """Remove the delay from now on."""
        self.pace(0)

    def step(self) -> int:
        """Last step in its journal."""
        steps = [line["step"] for line in journal(self.folder) if "train/loss" in line.get("metrics", ())]
        return steps[-1] if steps else 0

    def wait_for_step(self, step: int, seconds: float = PATIENCE) -> None:
        """Wait until the journal contains a step; fail if the job ends before."""
        looked = time.monotonic()

        def there() -> bool:
            nonlocal looked
            if self.step() >= step:
                return True
            if time.monotonic() > looked + 1:  # SLURM is polled less often than a file
                assert self.under_way() or self.step() >= step, f"its job ended before step {step}: {self}"
                looked = time.monotonic()
            return False

        wait_for(there, lambda: f"step {step}: {self}", seconds, every=0.05)

    def under_way(self) -> bool:
        """Whether its job is queued or running."""
        return self.state() in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")

    def state(self) -> str:
        """SLURM state of its job."""
        return self.cluster.job(self.job)["JobState"]

    def starts(self) -> int:
        """Number of restarts of its job."""
        return int(self.cluster.job(self.job)["Restarts"])

    def wait_for_requeue(self, number: int, seconds: float = PATIENCE) -> None:
        """Wait until its job is in the queue again for the n-th time."""

        def waits() -> bool:
            job = self.cluster.job(self.job)
            return job["JobState"] == "PENDING" and int(job["Restarts"]) == number

        wait_for(waits, lambda: f"requeue {number}: {self}", seconds, every=0.3)

    def continue_now(self, number: int, seconds: float = PATIENCE) -> None:
        """Start its job immediately after its n-th requeue, unless it has started already."""

        def runs() -> bool:
            job = self.cluster.job(self.job)
            if job["JobState"] == "PENDING" and int(job["Restarts"]) == number:
                # within one second of its last start's end, a node confuses the two starts and refuses the job
                time.sleep(1.5)
                with suppress(AssertionError):  # it may have started in the meantime
                    self.cluster.start_now(self.job)
            return int(job["Restarts"]) >= number and job["JobState"] not in ("PENDING", "COMPLETING", "REQUEUED")

        wait_for(runs, lambda: f"start {number}: {self}", seconds, every=0.5)

    def wait_until_it_runs(self) -> None:
        """Wait until its job has nodes."""
        wait_for(lambda: self.state() == "RUNNING", lambda: f"nodes: {self}", every=0.3)

    def signal(self, number: signal.Signals, *options: str) -> None:
        """Send a signal to all processes of its job, as SLURM does before a time limit."""
        self.cluster.run("scancel", *options, f"--signal={number.name.removeprefix('SIG')}", self.job)

    def printed(self) -> str:
        """Output of the first process of its job, over all starts."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.job_folder.glob("*_0_log.*")))

    def finish(self, seconds: float = PATIENCE) -> None:
        """Wait for the end of its job and require success."""
        self.at_full_speed()
        self.wait_until_over(seconds)
        assert self.state() == "COMPLETED", self
        assert status(self.folder)["state"] == "finished", self

    def wait_until_over(self, seconds: float = PATIENCE) -> None:
        """Wait until its job is neither queued nor running."""
        wait_for(lambda: not self.under_way(), lambda: f"the end: {self}", seconds, every=0.3)

    def process(self, rank: int = 0) -> int:
        """Id of one process that its job started (not of child processes of these)."""
        raw = self.cluster.job(self.job)["JobId"]  # an array job has another raw id
        wanted = {f"SLURM_JOB_ID={raw}", f"SLURM_PROCID={rank}"}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode().split("\0")
                environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                python = "submitit.core._submit" in command and Path(command[0]).name != "srun"
                if python and wanted <= set(environment):
                    parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    if b"submitit" not in Path(f"/proc/{parent}/cmdline").read_bytes():  # else a loader's
                        return int(folder.name)
        raise AssertionError(f"no process {rank} of job {self.job}")

    def stops(self) -> list[int]:
        """Steps after which it stopped cleanly."""
        return self._steps_printed(r"the run ends as \w+: stopped by \w+ after step (\d+)")

    def continuations(self) -> list[int]:
        """Steps after which it continued."""
        return self._steps_printed(r"continuing after step (\d+)")

    def assert_every_step_once(self) -> None:
        """All starts together did each step once; the journal cannot tell, since it records a step only once."""
        assert self._steps_printed(r" epoch \S+  step (\d+)/") == list(range(1, self.step() + 1)), self

    def _steps_printed(self, pattern: str) -> list[int]:
        return [int(found) for found in re.findall(pattern, (self.folder / "run.log").read_text())]

    def __str__(self) -> str:
        """Diagnostic information for a failure."""
        job = self.cluster.job(self.job)
        said = [f"{self.name}: job {self.job} is {job['JobState']} ({job['Reason']}), restarts {job['Restarts']}"]
        for path in [self.folder / "status.json", self.folder / "run.log", *sorted(self.job_folder.glob("*_0_log.*"))]:
            if path.is_file():
                said.append(f"--- {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(said)


def run_here(home: Path, *overrides: str) -> str:
    """Run to the end without SLURM and return the output."""
    done = finished([*RUN, *overrides], home, ENVIRONMENT | import_path())
    assert done.returncode == 0, done.stdout
    return done.stdout


def on_two_nodes(cluster: Any, home: Path, name: str, *more: str) -> JobRun:
    """Sixty steps on two nodes with one process each."""
    return JobRun(cluster, home, name, (*SIXTY, *ON_CPU, "hydra.launcher.nodes=2", *more), processes=2)


def run_semaim(cluster: Any, home: Path, *command: str, expect: int | None = 0) -> str:
    """Run a semaim command in the environment of a cluster, or of a job run, and return its output."""
    done = finished([sys.executable, "-m", *command], home, cluster.environment)
    assert expect is None or done.returncode == expect, done.stdout
    return done.stdout
