"""The states of a run, in its folder and in MLflow.

| status.json | meaning | MLflow |
|---|---|---|
| running | a process is running it | RUNNING |
| requeued | stopped and saved; SLURM will restart the job | SCHEDULED |
| finished | the result is in status.json | FINISHED |
| failed | an error ended it | FAILED |
| interrupted | a signal stopped it; the same command continues | KILLED |
| vanished | its process ended without a status, for example by SIGKILL | KILLED |
"""

from __future__ import annotations

from typing import Literal

RunState = Literal["running", "requeued", "finished", "failed", "interrupted", "vanished"]
MLflowStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
