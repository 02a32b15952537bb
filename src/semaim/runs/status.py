"""The states of a run: in its folder, and in MLflow.

| status.json | meaning | MLflow |
|---|---|---|
| running | a process works on it | RUNNING |
| requeued | stopped with everything saved; SLURM starts the job again | SCHEDULED |
| finished | the result is in status.json | FINISHED |
| failed | an error ended it | FAILED |
| interrupted | a signal stopped it; the same command continues | KILLED |
| vanished | its process was killed without a word | KILLED |
"""

from __future__ import annotations

from typing import Literal

RunState = Literal["running", "requeued", "finished", "failed", "interrupted", "vanished"]
MLflowStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
