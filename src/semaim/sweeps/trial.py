"""Asks SLURM whether it would accept jobs, by `sbatch --test-only` with the script that `submit` would write."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semaim.sweeps.submit import clean_environment, executor_of, max_array_size
from semaim.sweeps.sweep import Sweep

TIMEOUT_SECONDS = 60  # sbatch repeats its question to a controller that does not answer


def sbatch_answer(launcher: Mapping[str, Any], jobs: int) -> str:
    """What SLURM says against an array of jobs with a launcher's options; empty if it would accept them.

    Nothing is submitted or written. Of a sweep that becomes several arrays, this is the first.
    """
    sweep = Sweep("slurm", dict(launcher), [], 0, "", path=Path("/"))
    executor = executor_of(sweep, None)._executor
    if (size := min(jobs, max_array_size())) > 1:
        executor.parameters["map_count"] = size
    with clean_environment(sweep):
        try:
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=executor._make_submission_file_text("true", ""),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"sbatch timed out after {TIMEOUT_SECONDS} s"
    return done.stderr.strip() if done.returncode else ""
