"""The states of a run, and the content of status.json.

| state | meaning |
|---|---|
| new | not started, and no job is to start it |
| pending | waits for its job to start, or for earlier runs of the same process |
| starting | its job has nodes, but the run has not started |
| running | the process works and holds the lock |
| requeued | stopped and saved; SLURM starts the job again |
| finished | has a result |
| failed | ended by an error |
| interrupted | stopped by a signal, or cancelled; the same command continues |
| vanished | the process is gone without a last state, for example by SIGKILL |
| suspended | SLURM has stopped its processes, and lets them go on later |
| ending | has stopped, but its job still evaluates it, sends its results, or makes room |
| unknown | SLURM does not answer, or this user may not read the folder |
| damaged | a file of its folder cannot be read |

status.json and MLflow have the stored states. The others follow from the absence of the file, or from the job.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

StoredState = Literal["running", "requeued", "finished", "failed", "interrupted", "vanished"]
RunState = Literal["new", "pending", "starting", StoredState, "suspended", "ending", "unknown", "damaged"]
FOLDER_STATES: tuple[RunState, ...] = (
    "new",
    *get_args(StoredState),
    "damaged",
    "unknown",
)  # those of a run folder alone
# Nothing works on these runs until a command starts or submits them.
OVER: tuple[RunState, ...] = ("new", "finished", "failed", "interrupted", "vanished", "damaged")

MLflowStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
MLFLOW_STATUS: dict[StoredState, MLflowStatus] = {
    "running": "RUNNING",
    "requeued": "SCHEDULED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "vanished": "KILLED",
}


class Status(TypedDict, total=False):
    """Content of status.json: the state, progress of training, result or error, and the process that wrote it."""

    state: StoredState
    step: int
    last_step: int
    batch_size: int
    metric: str
    result: dict[str, int | float]
    asked: dict[str, Any]
    error: str
    host: str
    pid: int
    job: str
    array_index: int
    nodes: str
    restarts: int
