"""What disturbs a campaign: events that hit jobs and the cluster, and commands that users type meanwhile."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from semaim.runs.status import RunState
from support.chaos import WEIGHTS, Campaign, write_configuration

BY_USERS = ("status", "retry", "retry_twice", "cancel")
RESTARTING = ("kill", "requeue", "usr2", "usr2_at_start")
RESTARTS = 3  # of a job with a killed process: default of sweep.restarts
OBSERVED_SECONDS = 20.0  # an event's effect on a job is waited for no longer
BROKEN = "\nraise RuntimeError('somebody edits this file')\n"
STATE_IN_TABLE = re.compile(rf" (\d+(?:_\d+)?) +({'|'.join(get_args(RunState))})\b *(.*)")  # job, state and reason


@dataclass(frozen=True)
class Event:
    """A disturbance, chosen by the seed alone: the target is the first of `order` that it can hit.

    Attributes:
        at: seconds after the start.
        kind: key of WEIGHTS.
        order: every point, as an index.
        dice: two numbers in [0, 1) for further choices.
    """

    at: float
    kind: str
    order: tuple[int, ...]
    dice: tuple[float, float]


def schedule(seed: int, seconds: float, gap: tuple[float, float], points: int, kinds: Sequence[str]) -> list[Event]:
    """The events of a campaign, `gap` seconds apart; identical for the same arguments."""
    dice, at, events = random.Random(seed), 0.0, []
    while (at := at + dice.uniform(*gap)) < seconds:
        (kind,) = dice.choices(kinds, [WEIGHTS[each] for each in kinds])
        order = tuple(dice.sample(range(points), points))
        events.append(Event(at, kind, order, (dice.random(), dice.random())))
    return events


class Events(Campaign):
    """A campaign with its events: methods named as in WEIGHTS, which run in threads."""

    def happen(self, event: Event) -> None:
        """Let an event happen and log it; SLURM may refuse it, as while its controller is down."""
        clock = time.strftime("%H:%M:%S")
        try:
            with self.alone(f"user {1 + int(2 * event.dice[1])}") if event.kind in BY_USERS else nullcontext():
                target, before, after = getattr(self, event.kind)(event)
        except (AssertionError, subprocess.TimeoutExpired, OSError) as error:
            target, before, after = "-", "-", f"refused: {str(error).splitlines()[0][-100:]}"
        self.log(event.kind, target, before, after, clock)

    def pick(self, event: Event, *states: str) -> tuple[str, dict[str, Any]] | None:
        """Job id and point of the first point in the event's order whose job has one of these states."""
        points, queue = self.points(), self.queue()
        for index in event.order:
            _, point = points[index]
            state, _, _ = queue.get(point["job"], ("", "", ""))
            if state in states:
                return point["job"], point
        return None

    def hit(
        self, event: Event, act: Callable[[str], Any], states: Sequence[str] = ("RUNNING",)
    ) -> tuple[str, str, str]:
        """Act on a job, and wait until its state changes."""
        if (picked := self.pick(event, *states)) is None:
            return "-", f"no job is {' or '.join(states)}", "nothing done"
        job, point = picked
        before = self.seen(point)
        self.hits[point["run_dir"]].append((time.monotonic(), event.kind))
        act(job)
        return f"{job} {Path(point['run_dir']).name[:8]}", before, self.changed(event, job, point, before)

    def changed(self, event: Event, job: str, point: dict[str, Any], before: str) -> str:
        """State of a point once it differs from the one before, or the same one after a while.

        A job must then be there still, or again, after an event that restarts it, unless something else has hit it.
        """
        began, run_dir = time.monotonic(), point["run_dir"]
        while (after := self.seen(point)) == before or after.startswith("COMPLETING"):
            if time.monotonic() > began + OBSERVED_SECONDS or self.over.wait(0.5):
                break
        recent = [kind for at, kind in self.hits[run_dir] + self.hits[""] if at > began - 3 * OBSERVED_SECONDS]
        alone = [kind for kind in recent if kind not in ("conf", "source", "user ")] == [
            event.kind
        ]  # they must not matter
        deaths = Path(run_dir).parent.glob(f"*/jobs/{job}/deaths")
        restarts_left = sum(len(path.read_text().splitlines()) for path in deaths) <= RESTARTS
        gone = after.startswith("no job; ") and not after.startswith("no job; finished")
        if event.kind in RESTARTING and gone and alone and restarts_left:
            self.fault(f"job {job} was hit by {event.kind} alone and did not start again: {before} -> {after}")
        return after

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Do something to a part of the cluster, or as a user, that nothing else may do at the same time."""
        with self.guard:
            assert what not in self.busy, f"{what} is busy"
            self.busy.add(what)
        self.hits[""].append((time.monotonic(), what.rstrip("12")))
        try:
            yield
        finally:
            self.busy.discard(what)

    # ---- events that hit a job

    def kill(self, event: Event) -> tuple[str, str, str]:
        def act(job: str) -> None:
            processes = self.processes(f"SLURM_JOB_ID={self.queue()[job][1]}")
            assert processes, "the job has no process yet"
            os.kill(processes[int(event.dice[0] * len(processes))], signal.SIGKILL)

        return self.hit(event, act)

    def requeue(self, event: Event) -> tuple[str, str, str]:
        return self.hit(event, lambda job: self.cluster.requeue(job))

    def scancel(self, event: Event) -> tuple[str, str, str]:
        return self.hit(event, lambda job: self.cluster.run("scancel", job), ("RUNNING", "PENDING"))

    def usr2(self, event: Event) -> tuple[str, str, str]:
        return self.hit(event, lambda job: self.cluster.run("scancel", "--signal=USR2", job))

    def usr2_at_start(self, event: Event) -> tuple[str, str, str]:
        """The next job that starts gets the signal within its first second."""
        running = {job for job, (state, _, _) in self.queue().items() if state == "RUNNING"}
        deadline = time.monotonic() + 2 * OBSERVED_SECONDS
        while time.monotonic() < deadline and not self.over.wait(0.2):
            now = {job for job, (state, _, _) in self.queue().items() if state == "RUNNING"}
            for _, point in self.points():
                if point["job"] in now - running:
                    before = self.seen(point)
                    self.hits[point["run_dir"]].append((time.monotonic(), event.kind))
                    self.cluster.run("scancel", "--signal=USR2", point["job"])
                    after = self.changed(event, point["job"], point, before)
                    return f"{point['job']} {Path(point['run_dir']).name[:8]}", before, after
            running &= now
        return "-", "no job starts", "nothing done"

    # ---- events that hit the cluster

    def node_down(self, event: Event) -> tuple[str, str, str]:
        node = f"n{1 + int(2 * event.dice[0])}"
        with self.alone(f"node {node}"):
            before = self.counted()
            self.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
            try:
                self.over.wait(5 + 15 * event.dice[1])
                after = self.counted()
            finally:
                self.cluster.resume(node)
        return node, before, after

    def slurmd_stopped(self, event: Event) -> tuple[str, str, str]:
        return self._lose_node(event, signal.SIGSTOP)

    def slurmd_killed(self, event: Event) -> tuple[str, str, str]:
        return self._lose_node(event, signal.SIGKILL)

    def _lose_node(self, event: Event, number: signal.Signals) -> tuple[str, str, str]:
        """SLURM gives a node up and restarts its jobs, while their processes there still run."""
        node = f"n{1 + int(2 * event.dice[0])}"
        with self.alone(f"node {node}"):
            before = self.counted()
            for process in self.cluster.daemons("slurmd", "-N", node):
                os.kill(process, number)
            try:
                if event.dice[1] < 0.7:
                    self.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
                self.over.wait(10 + 20 * event.dice[1])
                after = self.counted()
            finally:
                self.cluster.resume(node)
        return node, before, after

    def slurmctld_restarted(self, event: Event) -> tuple[str, str, str]:
        """Three of ten times it is killed: what it has not stored, such as a start seconds ago, is then lost to it."""
        with self.alone("slurmctld"):
            before = self.counted()
            for process in self.cluster.daemons("slurmctld"):
                os.kill(process, signal.SIGKILL if event.dice[1] < 0.3 else signal.SIGTERM)
            self.over.wait(3 + 12 * event.dice[0])
            self.cluster.start_daemon("slurmctld")
            self.cluster.wait_for_controller()
            after = self.counted()
        return "slurmctld", before, after

    def disk_full(self, event: Event) -> tuple[str, str, str]:
        with self.alone("disk"):
            before, end = self.counted(), time.monotonic() + 4 + 12 * event.dice[0]
            try:
                while time.monotonic() < end and not self.over.wait(0.3):
                    with suppress(OSError), open(self.home / "runs" / ".fill", "ab", buffering=0) as file:
                        while True:
                            file.write(bytes(4096))
            finally:
                self.free_disk()
            after = self.counted()
        return "runs", before, after

    def free_disk(self) -> None:
        (self.home / "runs" / ".fill").unlink(missing_ok=True)

    def conf_edited(self, event: Event) -> tuple[str, str, str]:
        """Another learning rate and model, or those of the submission again."""
        with self.alone("conf"):
            before = self.counted()
            write_configuration(self.home, edited=event.dice[0] < 0.7)
            return "edited" if event.dice[0] < 0.7 else "as submitted", before, self.counted()

    def source_edited(self, event: Event) -> tuple[str, str, str]:
        """A module that only jobs import is broken for a while."""
        file = self.home / "source" / "semaim" / "tasks" / "pretrain.py"
        with self.alone("source"):
            before, content = self.counted(), file.read_text()
            try:
                file.write_text(content + BROKEN)
                self.over.wait(10 + 10 * event.dice[0])
            finally:
                file.write_text(content)
            return file.name, before, self.counted()

    # ---- commands of users

    def status(self, event: Event) -> tuple[str, str, str]:
        before = self.counted()
        return "both sweeps", before, self.look()

    def look(self) -> str:
        """`semaim status`: a job that SLURM has before and after must not be called over; reasons are kept to judge."""
        queue, names = set(self.queue()), {point["job"]: point["run_dir"] for _, point in self.points()}
        code, said = self.semaim("status", *[self.folder(sweep) for sweep in self.sweeps])
        self.cluster.wait_for_controller()
        after = set(self.queue())
        names |= {point["job"]: point["run_dir"] for _, point in self.points()}
        rows = STATE_IN_TABLE.findall(said)
        for job, state, reason in rows:
            if state in ("failed", "interrupted", "vanished", "new"):
                if job in queue & after:
                    self.fault(f"status calls job {job} {state} ({reason}), which SLURM has before and after", said)
                self.told.add((names.get(job, ""), state, reason))
        words = [state for _, state, _ in rows]
        return f"code {code}: " + ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))

    def retry(self, event: Event) -> tuple[str, str, str]:
        return self._retry(event, 1)

    def retry_twice(self, event: Event) -> tuple[str, str, str]:
        """Two users type it at the same moment."""
        return self._retry(event, 2)

    def _retry(self, event: Event, users: int) -> tuple[str, str, str]:
        sweep = self.sweeps[int(event.dice[0] * len(self.sweeps))]
        before, answers = self.counted(), [""] * users

        def ask(user: int) -> None:
            code, said = self.semaim("retry", "--failed", self.folder(sweep))
            submitted = re.findall(r"^submitted .*|^error.*", said, re.MULTILINE)
            answers[user] = f"code {code}: {submitted[-1][:100] if submitted else said.strip()[-100:]}"

        threads = [threading.Thread(target=ask, args=(user,)) for user in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.check_no_job_twice()
        return sweep.name, before, " | ".join(answers)

    def check_no_job_twice(self) -> None:
        """No two jobs of the queue are of the same point."""
        from submitit.core.utils import DelayedSubmission

        jobs: dict[tuple[str, int], list[str]] = {}
        for job in self.queue():
            for sweep in self.sweeps:
                file = self.folder(sweep) / "jobs" / job / f"{job}_submitted.pkl"
                if file.is_file():
                    number = DelayedSubmission.load(file).function.number
                    jobs.setdefault((sweep.name, number), []).append(job)
        for (name, number), twice in jobs.items():
            if len(twice) > 1:
                self.fault(f"point {number} of {name} has several jobs in the queue: {', '.join(twice)}")

    def cancel(self, event: Event) -> tuple[str, str, str]:
        if (picked := self.pick(event, "RUNNING", "PENDING")) is None:
            return "-", "no job is there", "nothing done"
        job, point = picked
        before = self.seen(point)
        for _, each in self.points():  # what follows a run is cancelled with it
            if point["run_dir"] in (each["run_dir"], each["parent"]):
                self.hits[each["run_dir"]].append((time.monotonic(), event.kind))
        folder = Path(point["run_dir"])
        assert folder.is_dir(), "it has no folder yet"
        code, said = self.semaim("cancel", folder)
        lines = said.strip().splitlines() or [""]
        return f"{job} {folder.name[:8]}", before, f"code {code}; {self.seen(point)}; {lines[-1][-60:] if code else ''}"
