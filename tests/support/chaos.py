"""Random disturbances of two sweeps on a real cluster: the sweeps, the events, and their log."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import status
from support.paced import PACE, import_path, set_pace
from support.slurm import Cluster

COMMAND_SECONDS = (
    600.0  # limit of a command that a user types, on a busy machine; `semaim cancel` waits for two minutes
)
WEIGHTS = {
    "kill": 5, "requeue": 4, "scancel": 3, "usr2": 4, "usr2_at_start": 3, "node_down": 1, "slurmd_stopped": 1,
    "slurmd_killed": 1, "slurmctld_restarted": 1, "disk_full": 1, "conf_edited": 2, "source_edited": 1, "status": 3,
    "retry": 6, "retry_twice": 3, "cancel": 1,
}  # fmt: skip
MODEL = "defaults: [aim_tiny, _self_]\nembed_dim: 32\nnum_heads: 2\ndrop_path: {drop_path}\n"
EXPERIMENT = """# @package _global_
defaults: [override /model: disturbed]
data: {{source: {{_target_: support.paced.squares}}}}
optimizer: {{base_lr: {rate}}}
trainer: {{batch_size: 16, save_every_steps: 5, log_every_steps: 1, ema: true}}
"""


@dataclass
class Disturbed:
    """A sweep with evaluations after its runs.

    Attributes:
        name: of its folder.
        processes: of each run, one per node.
        swept: its options with several values.
    """

    name: str
    processes: int
    swept: tuple[str, ...]


def write_configuration(home: Path, edited: bool = False) -> None:
    """The configuration folder of the sweeps, as submitted or as edited later."""
    contents = {
        "experiment": EXPERIMENT.format(rate=3e-3 if edited else 1e-3),
        "model": MODEL.format(drop_path=0.3 if edited else 0.1),
    }
    for group, content in contents.items():
        file = home / "conf" / group / "disturbed.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".new").write_text(content)
        file.with_suffix(".new").replace(file)


@dataclass
class Campaign:
    """Two sweeps under way, and what disturbs them. Methods named as in WEIGHTS are events; they run in threads.

    Attributes:
        cluster: a cluster of its own.
        home: working directory of the commands; runs/ is a small file system, source/ a copy of the package.
        sweeps: the sweeps.
        rows: the log: time, event, target, state before, state after.
        wrong: faults of the program, one line each.
        hits: time and kind of the events that hit each point, by its run folder; those of the whole cluster under "".
        told: state and reason of every job that a command has called over, with its run folder.
    """

    cluster: Cluster
    home: Path
    sweeps: Sequence[Disturbed]
    rows: list[dict[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hits: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    told: set[tuple[str, str, str]] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    busy: set[str] = field(default_factory=set)
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands: this cluster, and the package's copy in home."""
        paths = os.pathsep.join([str(self.home / "source"), import_path()["PYTHONPATH"]])
        return self.cluster.environment | {"PYTHONPATH": paths, "SEMAIM_SITE": "/nowhere"}

    def folder(self, sweep: Disturbed) -> Path:
        return self.home / "runs" / sweep.name

    def points(self) -> list[tuple[Disturbed, dict[str, Any]]]:
        """Every point of every sweep, as stored now."""
        stored = [(sweep, json.loads((self.folder(sweep) / "sweep.json").read_text())) for sweep in self.sweeps]
        return [(sweep, point) for sweep, content in stored for point in content["points"]]

    def semaim(
        self, *words: str | Path, module: str = "semaim", seconds: float = COMMAND_SECONDS, **variables: str
    ) -> tuple[int, str]:
        """Exit code and output of a command as a user types it; a traceback or silence for minutes is a fault."""
        command = [sys.executable, "-m", module, *map(str, words)]
        try:
            done = subprocess.run(
                command,
                cwd=self.home,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")  # bytes, whatever `text` says
            self.fault(f"{' '.join(command[2:])} takes more than {seconds:.0f} s", said)
            return -1, f"no answer within {seconds:.0f} s: {said}"
        if "Traceback (most recent call last)" in done.stdout or done.returncode not in (0, 1, 2):
            self.fault(f"{' '.join(command[2:])} ends with code {done.returncode}", done.stdout)
        return done.returncode, done.stdout

    def undisturbed(self, sweep: Disturbed) -> dict[str, tuple[Path, Path]]:
        """Make the runs of a sweep here, at full speed; the folder of each and of its evaluation, by name."""
        start = ("torch.distributed.run", "--standalone", f"--nproc-per-node={sweep.processes}", "-m")
        options = (
            "--config-dir",
            "conf",
            *sweep.swept,
            "runs_dir=reference",
            f"sweep.name={sweep.name}",
            "tracking=none",
        )
        module, *words = (*start, "semaim.run", "-m", *options)
        code, said = self.semaim(*words, module=module, seconds=1800)
        assert code == 0, said
        points = json.loads((self.home / "reference" / sweep.name / "sweep.json").read_text())["points"]
        return {Path(each["run_dir"]).name: (Path(each["run_dir"]), Path(each["then"][0])) for each in points}

    def submit(self, pace: float) -> None:
        """Submit the sweeps, with this minimum time per step."""
        self.pace(pace)
        for sweep in self.sweeps:
            options = ("hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1", "tracking=mlflow")
            more = (f"hydra.launcher.nodes={sweep.processes}", f"sweep.name={sweep.name}", "sweep.wait=false")
            words = ("-m", "--config-dir", "conf", *options, *more, *sweep.swept)
            code, said = self.semaim(*words, module="semaim.run", **{PACE: str(self.home / f"{sweep.name}.pace")})
            assert code == 0, said

    def pace(self, seconds_per_step: float) -> None:
        """Set the minimum time per step from now on."""
        for sweep in self.sweeps:
            set_pace(self.home / f"{sweep.name}.pace", seconds_per_step * sweep.processes / 16)

    # ---- what there is to see

    def queue(self) -> dict[str, tuple[str, str, str]]:
        """State, raw id and reason of each job in the queue, by its id."""
        lines = self.cluster.run("squeue", "-h", "-r", "-o", "%i|%T|%A|%r").splitlines()
        return {job: (state, raw, reason) for job, state, raw, reason in (line.split("|") for line in lines)}

    def seen(self, point: dict[str, Any]) -> str:
        """State of a point for SLURM and for its run folder."""
        state, _, reason = self.queue().get(point["job"], ("no job", "", ""))
        told: dict[str, Any] = {}
        with suppress(OSError):
            told = status(Path(point["run_dir"]))
        waits = f" ({reason})" if state == "PENDING" else ""
        return f"{state}{waits}; {told.get('state', 'new')} start {told.get('restarts', 0)}"

    def counted(self) -> str:
        """Number of jobs in each state."""
        states = [state for state, _, _ in self.queue().values()]
        return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "no jobs"

    def processes(self, *settings: str) -> list[int]:
        """Processes of runs in jobs, with these variables."""
        found = self.cluster.processes(*settings)
        return sorted(
            each for each, line in found.items() if "submitit.core._submit" in line and Path(line[0]).name != "srun"
        )

    def fault(self, what: str, excerpt: str = "") -> None:
        """Record a fault of the program, with the last lines of what it printed."""
        lines = excerpt.strip().splitlines()[-12:]
        self.wrong.append("\n    ".join([f"{time.monotonic() - self.started:.0f} s: {what}", *lines]))

    def log(self, kind: str, target: str, before: str, after: str, clock: str = "") -> None:
        """Append a row to events.csv; the clock is that of the beginning."""
        with self.guard:
            clock = clock or time.strftime("%H:%M:%S")
            self.rows.append({"time": clock, "event": kind, "target": target, "before": before, "after": after})
            with open(self.home / "events.csv", "a", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                if len(self.rows) == 1:
                    writer.writeheader()
                writer.writerow(self.rows[-1])
