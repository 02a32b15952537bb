"""Command-line runs in separate processes: start, watch, signal and read them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Smallest possible work, a few seconds: 16 images a step, no evaluation, no pictures, no tracking.
SMALL = (
    "tracking=none",
    "trainer.batch_size=16",
    "trainer.log_every_steps=1",
    "task.online_knn=null",
    "task.pictures=null",
    "model.embed_dim=32",
    "model.num_heads=2",
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
PIPED: dict[str, Any] = {
    "env": ENVIRONMENT,
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}
RUN = (sys.executable, "-m", "semaim.run")
PROGRAM = (sys.executable, "-m", "semaim")


def run(folder: Path, *overrides: str, launcher: tuple[str, ...] = RUN) -> subprocess.CompletedProcess[str]:
    """Run to the end; `stdout` holds standard output and error together."""
    return subprocess.run([*launcher, *overrides], cwd=folder, **PIPED, timeout=300, check=False)


def succeed(folder: Path, *overrides: str, launcher: tuple[str, ...] = RUN) -> str:
    """Run to the end, require exit code 0 and return the output."""
    done = run(folder, *overrides, launcher=launcher)
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def started(folder: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A running process, killed at exit if still alive."""
    process = subprocess.Popen([*RUN, *overrides], cwd=folder, **PIPED, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def journal(run_folder: Path) -> list[dict[str, Any]]:
    """Complete lines of a run's journal so far."""
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def measured(run_folder: Path) -> list[dict[str, Any]]:
    """Journal lines that hold metrics."""
    return [line for line in journal(run_folder) if "metrics" in line]


def losses(run_folder: Path) -> dict[int, float]:
    """Training loss by step; asserts that no step occurs twice."""
    lines = [line for line in journal(run_folder) if "train/loss" in line.get("metrics", ())]
    points = [(line["step"], line["metrics"]["train/loss"]) for line in lines]
    assert len(points) == len(dict(points))
    return dict(points)


def status(run_folder: Path) -> dict[str, Any]:
    """Content of status.json."""
    return json.loads((run_folder / "status.json").read_text())


def sweep_folder(home: Path) -> Path:
    """Folder of the only sweep in a working directory."""
    (file,) = (home / "runs").glob("*/sweep.json")
    return file.parent
