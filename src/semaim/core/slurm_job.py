"""What SLURM says of jobs and of itself. Everything is read from its commands' output; nothing is kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# SLURM's words for a job that is over. https://slurm.schedmd.com/squeue.html, "Job state codes"
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"REVOKED", "TIMEOUT"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
FIELDS = ("JobArrayID", "State", "RestartCnt", "NodeList", "Reason")


@dataclass(frozen=True)
class JobState:
    """What the scheduler knows of a job.

    Attributes:
        state: "unknown" where the scheduler does not answer.
        reason: why it waits, or how it ended, in the scheduler's words.
        restarts: how often it was requeued.
        nodes: where it runs or ran.
    """

    state: Literal["waiting", "running", "over", "unknown"]
    reason: str = ""
    restarts: int = 0
    nodes: str = ""


def answer(*command: str, seconds: float = 20) -> str | None:
    """Standard output of a SLURM command; None if it is not there, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """The state of jobs, by id (such as "12" or "12_3").

    The controller remembers jobs for some minutes after their end, the accounting data base (if there is one) for ever.
    A job that neither knows although the controller answers is over.
    """
    if not job_ids:
        return {}
    if answer("squeue", "--version") is None or answer("scontrol", "ping") is None:
        return dict.fromkeys(job_ids, JobState("unknown", "SLURM does not answer"))
    seen = _from_controller(job_ids)
    missing = [job for job in job_ids if job not in seen]
    seen |= _from_accounting(missing) if missing else {}
    return {job: seen.get(job, JobState("over", "SLURM no longer knows the job")) for job in job_ids}


def _arrays(job_ids: Sequence[str]) -> list[str]:
    return sorted({job.split("_")[0] for job in job_ids})


def _from_controller(job_ids: Sequence[str]) -> dict[str, JobState]:
    seen: dict[str, JobState] = {}
    columns = ",".join(f"{field}:|" for field in FIELDS)
    for array in _arrays(job_ids):  # of several ids one that is forgotten would spoil the answer for all
        text = answer("squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", f"--Format={columns}")
        for line in (text or "").splitlines():
            job, state, restarts, nodes, reason = line.split("|")[: len(FIELDS)]
            seen[job.strip()] = JobState(_kind(state), _why(state, reason), int(restarts), nodes.strip())
    return seen


def _from_accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    seen: dict[str, JobState] = {}
    columns = "--format=JobID,State,ExitCode,NodeList"
    text = answer("sacct", "-X", "--noheader", "--parsable2", f"--jobs={','.join(_arrays(job_ids))}", columns)
    for line in (text or "").splitlines():
        job, state, code, nodes = line.split("|")
        word = state.split()[0]  # "CANCELLED by 1000"
        reason = f"{state}, exit code {code}" if word == "FAILED" else state
        if word == "REQUEUED":  # the controller, which has forgotten it, would know a job that is in the queue again
            word, reason = "CANCELLED", "CANCELLED before it started again"
        seen[job] = JobState(_kind(word), reason, 0, nodes)
    return seen


def _kind(state: str) -> Literal["waiting", "running", "over"]:
    return "over" if state in OVER else "waiting" if state in WAITING else "running"


def _why(state: str, reason: str) -> str:
    """The scheduler's words that help: why a job waits, or how it ended."""
    known = "" if reason in ("None", "") else reason
    return known if state in WAITING else ": ".join(part for part in (state, known) if part)


def this_job(environment: Mapping[str, str] = os.environ) -> dict[str, str | int]:
    """The SLURM job that this process belongs to: id, index in its array, nodes and restarts; empty outside."""
    if "SLURM_JOB_ID" not in environment:
        return {}
    about: dict[str, str | int] = {"job": environment["SLURM_JOB_ID"]}
    if "SLURM_ARRAY_JOB_ID" in environment:
        index = int(environment["SLURM_ARRAY_TASK_ID"])
        about = {"job": f"{environment['SLURM_ARRAY_JOB_ID']}_{index}", "array_index": index}
    nodes = environment.get("SLURM_JOB_NODELIST", "")
    return about | {"nodes": nodes, "restarts": int(environment.get("SLURM_RESTART_COUNT", 0))}


def is_being_requeued() -> bool:
    """Whether SLURM ends this job only to start it again: it has counted the restart already."""
    text = answer("scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", ""), seconds=5)
    words = dict(word.split("=", 1) for word in (text or "").split() if "=" in word)
    return int(words.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))


def cancel(job_ids: Sequence[str]) -> bool:
    """Ask SLURM to end jobs; they get SIGTERM first."""
    return not job_ids or answer("scancel", *job_ids) is not None
