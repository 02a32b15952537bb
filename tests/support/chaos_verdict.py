"""The end of a campaign: repairs, the commands of a user, and what must then be true, each with a number."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.chaos_events import Events
from support.commands import status
from support.tracked import assert_shows_all, delivery_state, mlflow_client, points_written
from support.undisturbed import assert_nothing_lost

ROUNDS = 5  # of `semaim retry --failed`
ROUND_SECONDS = 600.0  # for the jobs of a round to end
LOST_AFTER = 30  # looks, of three seconds, at a running job without a process
# What a reason may say of a run that one of these events hit; what `""` says is true of all.
TRUE_REASONS = {
    "": r"DependencyNeverSatisfied|dependency",
    "kill": r"[Kk]illed|process is gone|another process of this run has ended",
    "scancel": r"CANCELLED|SIGTERM",
    "cancel": r"CANCELLED|SIGTERM",
    "requeue": r"SIGTERM|CANCELLED before it started again|DUE TO JOB REQUEUE",
    "usr2": r"SIGUSR2",
    "usr2_at_start": r"SIGUSR2",
    "node n": r"NODE_FAIL|SIGTERM|[Kk]illed|process is gone|Node failure|STEP .* FAILED",
    "slurmctld": r"no longer lists|process is gone|NODE_FAIL",
    "disk": r"[Nn]o space left|disk is full|process is gone|exit code 1",  # its error cannot be written
}


def repair(campaign: Events) -> None:
    """Undo what is still disturbed; the edited configuration stays."""
    campaign.free_disk()
    campaign.cluster.start_daemon("slurmctld")
    campaign.cluster.wait_for_controller()
    for node in ("n1", "n2"):
        campaign.cluster.resume(node)


def conclude(campaign: Events) -> None:
    """Do what a user would do until nothing is left to do: retry, wait, and again."""
    campaign.pace(0)
    for number in range(1, ROUNDS + 1):
        submitted = 0
        campaign.look()
        for sweep in campaign.sweeps:
            code, said = campaign.semaim("retry", "--failed", campaign.folder(sweep))
            words = re.search(r"^submitted (\d+)", said, re.MULTILINE)
            campaign.log("retry at the end", sweep.name, f"round {number}", words[0] if words else f"code {code}")
            submitted += int(words[1]) if words else 0
            if words is None:
                campaign.fault(f"retry of {sweep.name} after all repairs ends with code {code}", said)
        campaign.check_no_job_twice()
        if not submitted and not campaign.queue():
            break
        until, empty = time.monotonic() + ROUND_SECONDS, Counter[str]()
        while queue := campaign.queue():
            if time.monotonic() > until:
                waiting = [f"{job} {state} ({reason})" for job, (state, _, reason) in queue.items()]
                campaign.fault(f"jobs that do not end within {ROUND_SECONDS:.0f} s: {', '.join(waiting)}")
                break
            for job, (state, raw, reason) in queue.items():
                with suppress(AssertionError):
                    if state == "PENDING" and reason == "BeginTime":
                        campaign.cluster.start_now(job)
                    if "held" in reason.lower():  # SLURM does so when a node refuses a job; a user sees it in status
                        campaign.cluster.run("scontrol", "release", job)
                        campaign.log("released by hand", job, reason, "")
                    # a controller that is killed forgets what it did in its last seconds, such as the end of a job
                    empty[job] += state == "RUNNING" and not campaign.processes(f"SLURM_JOB_ID={raw}")
                    if empty[job] == LOST_AFTER:
                        campaign.cluster.requeue(job)
                        campaign.hits[""].append((time.monotonic(), "requeue"))
                        campaign.log("requeued by hand", job, "RUNNING without a process", "")
            time.sleep(3)
    campaign.log("status at the end", "both sweeps", "", campaign.look())


class Verdict:
    """Checks of every point after the end; each failure is a fault of the campaign.

    Attributes:
        counts: of each check, the number of points for which it holds, and that of all.
    """

    def __init__(self, campaign: Events, references: dict[str, tuple[Path, Path]]) -> None:
        self.campaign = campaign
        self.counts: dict[str, tuple[int, int]] = {}
        points = [(sweep, point, Path(point["run_dir"])) for sweep, point in campaign.points()]
        runs = [folder for _, point, folder in points if point["after"] is None]
        first = {str(folder): references[folder.name] for folder in runs}
        everything = [folder for _, _, folder in points]
        self.check("runs and evaluations are finished", everything, self._finished)
        self.check("weights, optimizer, random state and losses of steps 1 to n equal the undisturbed ones", runs,
                   lambda folder: assert_nothing_lost(folder, first[str(folder)][0]))  # fmt: skip
        self.check("journals have no metric twice for a step", everything, self._each_step_once)
        evaluated = {folder: Path(point["parent"]) for _, point, folder in points if point["after"] is not None}
        self.check("k-NN results equal the undisturbed ones", evaluated,
                   lambda folder: self._same_result(folder, first[str(evaluated[folder])][1]))  # fmt: skip
        parents = {folder: Path(point["parent"]) for _, point, folder in points}
        self.client = mlflow_client(f"sqlite:///{campaign.home / 'mlflow.db'}")
        self.check("runs in MLflow have the state, each metric point once, and their parent", parents,
                   lambda folder: self._shown(folder, parents[folder]))  # fmt: skip
        self.check("sweeps are shown as finished", [campaign.folder(sweep) for sweep in campaign.sweeps], self._parent)
        self.check("folders have no temporary file", everything, self._nothing_temporary)
        self.check("no process is left", [campaign.cluster.folder], self._no_process)
        self.check("reasons of runs that were over were true", sorted(campaign.told), self._true)

    def check(self, what: str, cases: Any, judge: Callable[[Any], None]) -> None:
        """Judge each case, which raises an error with what is wrong."""
        good, cases = 0, list(cases)
        for case in cases:
            try:
                judge(case)
                good += 1
            except Exception as error:  # any: it is reported, and the next case judged
                name = case.name if isinstance(case, Path) else " ".join(map(str, case))
                self.campaign.fault(f"not so: {what}: {name}: {type(error).__name__}", str(error)[:2000])
        self.counts[what] = (good, len(cases))

    def _finished(self, folder: Path) -> None:
        found = status(folder)
        assert found["state"] == "finished", found

    def _each_step_once(self, folder: Path) -> None:
        for key, points in points_written(folder).items():
            steps = [step for step, _, _ in points]
            assert steps == sorted(set(steps)), (key, steps)

    def _same_result(self, folder: Path, undisturbed: Path) -> None:
        assert status(folder)["result"] == status(undisturbed)["result"]

    def _shown(self, folder: Path, parent: Path) -> None:
        assert_shows_all(self.client, folder, "FINISHED")
        tags = self.client.get_run(delivery_state(folder)["run_id"]).data.tags
        assert tags["mlflow.parentRunId"] == delivery_state(parent)["run_id"], tags

    def _parent(self, folder: Path) -> None:
        info = self.client.get_run(delivery_state(folder)["run_id"]).info
        assert info.status == "FINISHED", info.status

    def _nothing_temporary(self, folder: Path) -> None:
        found = [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".new", ".part"))]
        assert not found, found

    def _no_process(self, _: Path) -> None:
        assert not (left := self.campaign.processes()), left

    def _true(self, told: tuple[str, str, str]) -> None:
        run_dir, _, reason = told
        hits = self.campaign.hits
        kinds = {""} | {kind for _, kind in hits[run_dir] + hits[""]}
        assert any(re.search(TRUE_REASONS.get(kind, "$^"), reason) for kind in kinds), sorted(kinds - {""})


def summary(rows: list[dict[str, str]]) -> str:
    """A Markdown table: how often each kind of event happened, and what came of it."""
    kinds: dict[str, dict[str, int]] = {}
    for row in rows:
        outcome = "refused or no target" if row["after"].startswith(("refused", "nothing")) else _outcome(row["after"])
        outcomes = kinds.setdefault(row["event"], {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    lines = ["| event | count | outcomes |", "|---|---|---|"]
    for kind, outcomes in sorted(kinds.items()):
        told = "; ".join(f"{count} {what}" for what, count in sorted(outcomes.items(), key=lambda each: -each[1])[:8])
        lines.append(f"| {kind} | {sum(outcomes.values())} | {told} |")
    return "\n".join(lines)


def _outcome(after: str) -> str:
    """An outcome without its numbers."""
    return re.sub(r"\b[1-9]\d* (?=[A-Za-z])|start \d+|\d+_\d+", "", after).replace("|", "and").strip(" ;,")[:60]
