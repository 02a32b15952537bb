"""A real SLURM cluster of two nodes on this machine, started by one_machine_slurm.sh, and its commands."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.commands import ENVIRONMENT
from support.waiting import PATIENCE, wait_for

SCRIPT = Path(__file__).with_name("one_machine_slurm.sh")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged")
# A shell starts the cluster and stops it at the end of its input, hence also when the tests are killed.
KEEPER = '"$0" start >start.log 2>&1; echo $?; read -r; "$0" stop >stop.log 2>&1'


def missing() -> str | None:
    """Reason why no cluster can be started, or None."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    if absent:
        return f"needs SLURM, which {SCRIPT.name} says how to install; there is no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "only root can start a SLURM cluster"


def free_ports(count: int) -> int:
    """First of `count` consecutive free ports, below the ports of outgoing connections and submitit."""
    while True:
        first = random.randrange(10_000, 20_000 - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as free:
                    free.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


class Cluster:
    """Two nodes, n1 and n2, with 4 CPUs, 8000 MB and two simulated GPUs each; partitions main, urgent and short.

    A job id is the number that sbatch prints; an array task has the id "<number>_<task>".
    """

    def __init__(self, folder: Path, accounting: bool = True) -> None:
        self.folder = folder
        self.accounting = accounting
        self.port = free_ports(5)
        self.keeper: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment for commands that use this cluster."""
        others = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("SLURM", "SBATCH"))}
        return others | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start with the queue and the accounts stored in the folder."""
        settings = {"DIR": self.folder, "PORT": self.port, "ACCOUNTING": int(self.accounting)}
        self.keeper = subprocess.Popen(
            ["bash", "-c", KEEPER, str(SCRIPT)],
            cwd=self.folder,
            env=self.environment | {f"SEMAIM_SLURM_{name}": str(value) for name, value in settings.items()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == "0\n", (self.folder / "start.log").read_text()

    def stop(self) -> None:
        """End every process; running jobs have 15 s to finish and return to the queue."""
        if self.keeper is not None:
            self.keeper.communicate(timeout=PATIENCE)
            self.keeper = None

    def run(self, *command: str | Path | int, cwd: Path | None = None) -> str:
        """Output of a command, such as sinfo; the command must succeed."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words,
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str | Path, cwd: Path | None = None) -> int:
        """Submit with the options and script or --wrap of sbatch; return the job number."""
        return int(self.run("sbatch", "--parsable", *arguments, cwd=cwd))

    def nodes(self) -> dict[str, str]:
        """State of every node, such as idle, mixed, allocated."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines())

    def squeue(self) -> dict[str, str]:
        """State of every job in the queue: PENDING, RUNNING, COMPLETING."""
        return dict(line.split() for line in self.run("squeue", "-h", "-r", "-o", "%i %T").splitlines())

    def jobs(self) -> dict[str, dict[str, str]]:
        """scontrol's fields of each job until five minutes after its end: JobState, Reason, Restarts, NodeList..."""
        jobs = {}
        for line in self.run("scontrol", "-o", "show", "jobs").splitlines():
            job = dict(re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", line))
            if "JobId" in job:
                array = "ArrayTaskId" in job
                jobs[f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if array else job["JobId"]] = job
        return jobs

    def job(self, job_id: int | str) -> dict[str, str]:
        """scontrol's fields of a job."""
        return self.jobs()[str(job_id)]

    def wait_for_state(self, job_id: int | str, *states: str) -> None:
        """Wait until the state of a job is one of these, such as RUNNING or COMPLETED."""
        what = f"job {job_id} to be {' or '.join(states)}"
        wait_for(lambda: self.job(job_id)["JobState"] in states, what)

    def sacct(self, job_id: int | str) -> list[dict[str, str]]:
        """Accounting record of each start of a job, oldest first; state, nodes and partition lag by seconds."""
        fields = ("State", "ExitCode", "Start", "End", "Partition", "NodeList")
        lines = self.run("sacct", "-D", "-X", "-n", "-P", "-j", job_id, "-o", ",".join(fields)).splitlines()
        starts = [dict(zip(fields, line.split("|"), strict=True)) for line in lines]
        return sorted(starts, key=lambda start: start["Start"])

    def requeue(self, job_id: int | str) -> None:
        """SIGTERM, after 15 s SIGKILL, then return to the queue, with a delay of ten seconds."""
        self.run("scontrol", "requeue", job_id)

    def start_now(self, job_id: int | str) -> None:
        """Start a delayed job now, such as a requeued one."""
        self.run("scontrol", "update", f"jobid={job_id}", "starttime=now")

    def processes(self, *settings: str) -> dict[int, list[str]]:
        """Command lines of the daemons and of the processes of jobs, with these variables such as SLURM_PROCID=0."""
        mine, found = {f"SLURM_CONF={self.folder / 'slurm.conf'}", *settings}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mine <= set((folder / "environ").read_bytes().decode(errors="replace").split("\0")):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        return found

    def daemons(self, name: str, *words: str) -> list[int]:
        """Processes of a daemon, such as slurmd -N n1."""
        found = self.processes()
        return [each for each, line in found.items() if Path(line[0]).name == name and {*words} <= {*line}]

    def start_daemon(self, name: str, *words: str) -> None:
        """Start a daemon unless it runs, and let it continue if it was stopped."""
        for process in self.daemons(name, *words):
            os.kill(process, signal.SIGCONT)
        if not self.daemons(name, *words):
            path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
            subprocess.run([name, *words], env=self.environment | path, capture_output=True, timeout=30, check=False)

    def wait_for_controller(self) -> None:
        """Wait until the controller answers."""

        def answers() -> bool:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                return "UP" in self.run("scontrol", "ping")
            return False

        wait_for(answers, "slurmctld", 120, every=1)

    def resume(self, node: str) -> None:
        """Bring a node back, with its daemon."""

        def up() -> bool:
            self.start_daemon("slurmd", "-N", node)
            with suppress(AssertionError, subprocess.TimeoutExpired):  # no answer, or it has come back by itself
                state = self.nodes()[node]
                if "down" in state or "drain" in state:
                    self.run("scontrol", "update", f"nodename={node}", "state=resume")
                return state in ("idle", "mixed", "allocated", "completing")
            return False

        wait_for(up, f"node {node}", 120, every=1)

    def cancel_all(self) -> None:
        """Empty the queue; jobs that ignore SIGTERM are killed."""
        for options in (("--state=PENDING",), ("--state=RUNNING", "--full", "--signal=KILL"), ("--state=RUNNING",)):
            subprocess.run(
                ["scancel", *options], env=self.environment, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False
            )

    def wait_idle(self) -> None:
        """Wait until the queue is empty and all nodes are idle."""

        def idle() -> bool:
            return not self.squeue() and set(self.nodes().values()) == {"idle"}

        wait_for(idle, f"an idle cluster; see {self.folder}/log")


@contextmanager
def used(cluster: Cluster) -> Iterator[None]:
    """This process and the processes of commands.py use a cluster; its queue is emptied at exit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setitem(ENVIRONMENT, "SLURM_CONF", cluster.environment["SLURM_CONF"])
        try:
            yield
        finally:
            cluster.cancel_all()
            cluster.wait_idle()
