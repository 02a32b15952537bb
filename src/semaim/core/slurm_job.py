"""State of SLURM jobs, read from the output of SLURM's commands; nothing is cached.

A job is named as SLURM shows it: "12", or "12_3" for task 3 of array 12. The variable SLURM_JOB_ID is no such name: for
one task of an array it is "12", which SLURM's commands take for the whole array.

A command that fails, does not end or prints what is not understood is no answer. Its jobs are "unknown", never over.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

Kind = Literal["waiting", "running", "suspended", "ending", "over", "unknown"]
# SLURM's states and flags of a job, https://slurm.schedmd.com/job_state_codes.html; docs/cluster.md explains them. A
# revoked job runs on another cluster, which is not asked.
STATES: dict[Kind, tuple[str, ...]] = {
    "waiting": ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    "running": ("CONFIGURING", "POWER_UP_NODE", "RESIZING", "RUNNING", "SIGNALING"),
    "suspended": ("STOPPED", "SUSPENDED"),
    "ending": ("COMPLETING", "STAGE_OUT"),
    "over": ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
             "TIMEOUT"),
    "unknown": ("REVOKED",),
}  # fmt: skip
KINDS = {state: kind for kind in get_args(Kind) for state in STATES[kind]}
FIELDS = ("JobArrayID", "State", "RestartCnt", "NodeList", "Reason")
JOB = r"(\d+(?:\+\d+|_\d+|_\[[\d,:%-]+\])?)"  # the second kind is not of semaim, but it may be listed, too
SQUEUE_ROW = re.compile(rf"{JOB} *\|([A-Z_]+) *\|(\d+) *\|([^|]*)\|([^|]*)\|")
SACCT_ROW = re.compile(rf"{JOB}\|([A-Z_]+(?: by \S+)?)\|(\d+:\d+)\|([^|]*)")
NO_NODES = ("None assigned", "(null)", "N/A", "n/a")
NOT_LISTED = "SLURM no longer lists the job"
NO_ACCOUNTING = re.compile(r"not installed|accounting storage is disabled", re.IGNORECASE)
ANSWER_SECONDS = 20.0  # for one command
RETRY_SECONDS = 5.0  # a command that failed is tried again if it began earlier than this
# They would hide jobs or shorten "12_[0,2,4,6]"; the options of a command line win over most others.
FILTERS = re.compile(r"(SQUEUE|SACCT)_")
WHOLE_RANGES = {"SLURM_BITSTR_LEN": "0"}


@dataclass(frozen=True)
class JobState:
    """Scheduler state of a job.

    Attributes:
        state: "unknown" if the scheduler does not answer, or says what is not understood.
        reason: SLURM's reason for waiting, or its state; for a running job only if it does more than run.
        restarts: number of requeues.
        nodes: nodes of the job.
    """

    state: Kind
    reason: str = ""
    restarts: int = 0
    nodes: str = ""


class NoAnswer(Exception):
    """A command of SLURM failed; the text says how."""


def output_of(*command: str, seconds: float = ANSWER_SECONDS) -> str | None:
    """Standard output of a command; None if it is not installed, fails or times out."""
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout if completed.returncode == 0 else None


def ask(*command: str, seconds: float = ANSWER_SECONDS) -> str:
    """Standard output of a command of SLURM, which is tried again for some seconds; raises NoAnswer."""
    environment = {name: value for name, value in os.environ.items() if not FILTERS.match(name)} | WHOLE_RANGES
    started = time.monotonic()
    while True:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, env=environment
            )
            said = done.stderr.strip()
            if done.returncode == 0 and (done.stdout.strip() or "error" not in said):
                return done.stdout
            last = said.splitlines()[-1].removeprefix(f"{command[0]}: ") if said else f"exit code {done.returncode}"
            said = f"{command[0]}: {last}"
        except subprocess.TimeoutExpired:
            said = f"{command[0]} did not end within {seconds:.0f} s"
        except OSError as error:
            said = (
                f"{command[0]} is not installed" if isinstance(error, FileNotFoundError) else f"{command[0]}: {error}"
            )
        if time.monotonic() - started > RETRY_SECONDS or "Invalid job id" in said or NO_ACCOUNTING.search(said):
            raise NoAnswer(said)
        time.sleep(1)


def job_states(job_ids: Collection[str]) -> dict[str, JobState]:
    """The state of jobs, by id (such as "12" or "12_3"), with one question for all of them.

    The controller keeps ended jobs for some minutes, the accounting database (if there is one) permanently. It is asked
    for those that the controller does not list. A job is over if both answer and neither lists it as alive.
    """
    if not job_ids:
        return {}
    try:
        states = _from_controller(_arrays(job_ids))
    except NoAnswer as error:
        return dict.fromkeys(job_ids, JobState("unknown", f"SLURM does not answer ({error})"))
    if missing := [job for job in job_ids if job not in states]:
        try:
            states = _from_accounting(_arrays(missing)) | states
        except NoAnswer as error:
            reason = f"{NOT_LISTED}, and its accounting does not answer ({error})"
            states |= dict.fromkeys(missing, JobState("unknown", reason))
    return {job: states.get(job, JobState("over", NOT_LISTED)) for job in job_ids}


def _arrays(job_ids: Collection[str]) -> list[str]:
    return sorted({job.split("_")[0] for job in job_ids}, key=int)


def _from_controller(arrays: Sequence[str]) -> dict[str, JobState]:
    columns = ",".join(f"{field}:|" for field in FIELDS)
    squeue = ("squeue", "--noheader", "--all", "--array", "--states=all", f"--Format={columns}")
    try:
        text = ask(*squeue, f"--jobs={','.join(arrays)}")
    except NoAnswer as error:
        if "Invalid job id" not in str(error):
            raise
        text = ask(*squeue) if len(arrays) > 1 else ""  # one unknown id makes some questions fail
    states: dict[str, JobState] = {}
    for job, state, restarts, nodes, reason in _rows(SQUEUE_ROW, "squeue", text):
        if job.split("_")[0] in arrays:
            of_all = JobState(_kind(state), _reason(state, nodes, reason), int(restarts), nodes)
            states |= dict.fromkeys(_tasks(job), of_all)
    return states


def _from_accounting(arrays: Sequence[str]) -> dict[str, JobState]:
    """States of jobs that the controller does not list, so they are over, whatever their last entry is."""
    columns = "--format=JobID,State,ExitCode,NodeList"
    try:
        text = ask("sacct", "-X", "--noheader", "--parsable2", f"--jobs={','.join(arrays)}", columns)
    except NoAnswer as error:
        if NO_ACCOUNTING.search(str(error)):
            return {}
        raise
    states: dict[str, JobState] = {}
    for job, state, code, nodes in _rows(SACCT_ROW, "sacct", text):
        word = state.split()[0]  # "CANCELLED by 1000"
        if word == "REQUEUED":  # so it was cancelled
            reason = "CANCELLED before it started again"
        elif KINDS.get(word) in ("waiting", "running", "suspended", "ending"):
            reason = NOT_LISTED
        else:
            reason = _reason(state, nodes, f"exit code {code}" if word == "FAILED" else "")
        kind: Kind = "unknown" if _kind(word) == "unknown" else "over"
        states |= dict.fromkeys(_tasks(job), JobState(kind, reason, 0, nodes))
    return states


def _rows(pattern: re.Pattern[str], command: str, text: str) -> list[list[str]]:
    """The fields of each line; raises NoAnswer if a line is not that of a job."""
    rows = []
    for line in filter(str.strip, text.splitlines()):
        if (found := pattern.match(line)) is None:
            raise NoAnswer(f"{command} prints {line.strip()[:60]!r}")
        rows.append(["" if field in NO_NODES else field.strip() for field in found.groups()])
    return rows


def _tasks(job: str) -> list[str]:
    """The jobs of "12", "12_3" or "12_[0,3-9:2%4]", which stands for several tasks of an array."""
    array, _, tasks = job.partition("_[")
    names = [
        f"{array}_{task}"
        for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.split("%")[0])
        for task in range(int(first), int(last or first) + 1, int(step or 1))
    ]
    return names or [job]


def _kind(state: str) -> Kind:
    return KINDS.get(state.split()[0], "unknown")


def _reason(state: str, nodes: str, reason: str) -> str:
    """The reason of a job that waits in the usual way; of others SLURM's state and what explains it."""
    reason = "" if reason == "None" else reason
    if state in ("PENDING", "RUNNING"):
        return reason
    if state.startswith("CANCELLED") and not reason.startswith("Dependency"):  # reasons to wait, which no longer hold
        return state if nodes else f"{state} before it started"
    return ": ".join(part for part in (state, reason) if part)


def this_job() -> dict[str, str | int]:
    """The SLURM job of this process: id, array index, nodes and restarts; empty outside SLURM."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    job: dict[str, str | int] = {"job": os.environ["SLURM_JOB_ID"]}
    if "SLURM_ARRAY_JOB_ID" in os.environ and _is_array_task(os.environ["SLURM_JOB_ID"]):
        index = int(os.environ["SLURM_ARRAY_TASK_ID"])
        job = {"job": f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}", "array_index": index}
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    return job | {"nodes": nodes, "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0))}


@cache
def _is_array_task(job: str) -> bool:
    """Whether this job is a task of an array. A job that a task has submitted, if not as a sweep, has its variables."""
    if "SUBMITIT_EXECUTOR" in os.environ or job == os.environ["SLURM_ARRAY_JOB_ID"]:
        return True
    text = output_of("scontrol", "--oneliner", "show", "job", job, seconds=5)
    return text is None or "ArrayJobId=" in text


def is_being_requeued() -> bool:
    """Whether SLURM is about to restart this job: its restart counter is incremented. No answer counts as no."""
    try:
        text = ask("scontrol", "--oneliner", "show", "job", str(this_job().get("job", "")), seconds=5)
    except NoAnswer:
        return False
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return int(words.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))


def cancel(job_ids: Collection[str]) -> None:
    """Cancel SLURM jobs; they receive SIGTERM first. Raises NoAnswer if SLURM does not accept the request."""
    if job_ids:
        ask("scancel", *job_ids)
