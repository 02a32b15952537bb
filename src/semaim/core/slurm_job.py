"""State of SLURM jobs, read from the output of SLURM's commands; nothing is cached."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# SLURM's states of a job that has ended. https://slurm.schedmd.com/squeue.html, "Job state codes"
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"REVOKED", "TIMEOUT"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
FIELDS = ("JobArrayID", "State", "RestartCnt", "NodeList", "Reason")


@dataclass(frozen=True)
class JobState:
    """Scheduler state of a job.

    Attributes:
        state: "unknown" if the scheduler does not answer.
        reason: SLURM's reason for waiting, or its final state.
        restarts: number of requeues.
        nodes: nodes of the job.
    """

    state: Literal["waiting", "running", "over", "unknown"]
    reason: str = ""
    restarts: int = 0
    nodes: str = ""


def output_of(*command: str, seconds: float = 20) -> str | None:
    """Standard output of a command; None if it is not installed, fails or times out."""
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout if completed.returncode == 0 else None


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """The state of jobs, by id (such as "12" or "12_3").

    The controller keeps ended jobs for some minutes, the accounting database (if there is one) permanently. A job is
    over if the controller answers and neither lists it.
    """
    if not job_ids:
        return {}
    if output_of("squeue", "--version") is None or output_of("scontrol", "ping") is None:
        return dict.fromkeys(job_ids, JobState("unknown", "SLURM does not answer"))
    states = _from_controller(job_ids)
    missing = [job for job in job_ids if job not in states]
    states |= _from_accounting(missing) if missing else {}
    return {job: states.get(job, JobState("over", "SLURM no longer lists the job")) for job in job_ids}


def _arrays(job_ids: Sequence[str]) -> list[str]:
    return sorted({job.split("_")[0] for job in job_ids})


def _from_controller(job_ids: Sequence[str]) -> dict[str, JobState]:
    states: dict[str, JobState] = {}
    columns = ",".join(f"{field}:|" for field in FIELDS)
    for array in _arrays(job_ids):  # with several ids in one query, one unknown id makes the query fail
        text = output_of("squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", f"--Format={columns}")
        for line in (text or "").splitlines():
            job, state, restarts, nodes, reason = line.split("|")[: len(FIELDS)]
            states[job.strip()] = JobState(_kind(state), _reason(state, reason), int(restarts), nodes.strip())
    return states


def _from_accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    states: dict[str, JobState] = {}
    columns = "--format=JobID,State,ExitCode,NodeList"
    text = output_of("sacct", "-X", "--noheader", "--parsable2", f"--jobs={','.join(_arrays(job_ids))}", columns)
    for line in (text or "").splitlines():
        job, state, code, nodes = line.split("|")
        word = state.split()[0]  # "CANCELLED by 1000"
        reason = f"{state}, exit code {code}" if word == "FAILED" else state
        if word == "REQUEUED":  # a requeued job would be listed by the controller, so this one was cancelled
            word, reason = "CANCELLED", "CANCELLED before it started again"
        states[job] = JobState(_kind(word), reason, 0, nodes)
    return states


def _kind(state: str) -> Literal["waiting", "running", "over"]:
    return "over" if state in OVER else "waiting" if state in WAITING else "running"


def _reason(state: str, reason: str) -> str:
    """The reason of a waiting job, or the state and reason of another one."""
    reason = "" if reason == "None" else reason
    return reason if state in WAITING else ": ".join(part for part in (state, reason) if part)


def this_job() -> dict[str, str | int]:
    """The SLURM job of this process: id, array index, nodes and restarts; empty outside SLURM."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    job: dict[str, str | int] = {"job": os.environ["SLURM_JOB_ID"]}
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        index = int(os.environ["SLURM_ARRAY_TASK_ID"])
        job = {"job": f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}", "array_index": index}
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    return job | {"nodes": nodes, "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0))}


def is_being_requeued() -> bool:
    """Whether SLURM is about to restart this job: its restart counter is already incremented."""
    text = output_of("scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", ""), seconds=5)
    words = dict(word.split("=", 1) for word in (text or "").split() if "=" in word)
    return int(words.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))


def cancel(job_ids: Sequence[str]) -> bool:
    """Cancel SLURM jobs; they receive SIGTERM first. Returns whether SLURM accepted the request."""
    return not job_ids or output_of("scancel", *job_ids) is not None
