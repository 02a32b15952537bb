"""Command-line runs in separate processes: start, watch, signal and read them.

The processes are forked from one that has imported the libraries (fork_server.py); what SLURM, torchrun, submitit and
shells start is a new interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.fork_server import ForkedProcess, ForkServer
from support.waiting import PATIENCE

# Smallest possible work, a few seconds: 16 images a step, no evaluation, no pictures, no tracking.
SMALL = (
    "tracking=none",
    "trainer.batch_size=16",
    "trainer.log_every_steps=1",
    "evaluators=[]",
    "model.embed_dim=32",
    "model.num_heads=2",
)
# The interpreter's folder holds the console scripts; the commands ignore the user's site settings.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["SEMAIM_SITE"] = "/nowhere"
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


_server: list[ForkServer] = []
_starting = threading.Lock()


def start(
    command: Sequence[Any], cwd: Path, environment: Mapping[str, str] = ENVIRONMENT, *, new_session: bool = False
) -> ForkedProcess | subprocess.Popen[str]:
    """Start a command without standard input; its output and errors go to one pipe."""
    words = [str(word) for word in command]
    with _starting:
        if not _server:
            _server.append(ForkServer(ENVIRONMENT))
    if _server[0].can_run(words, environment):
        return _server[0].start(words, cwd, environment, new_session)
    return subprocess.Popen(words, cwd=cwd, **PIPED | {"env": environment}, start_new_session=new_session)


def finished(
    command: Sequence[Any], cwd: Path, environment: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """Run any command to the end; `stdout` holds standard output and error together."""
    process = start(command, cwd, environment)
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def run(folder: Path, *overrides: str, launcher: tuple[str, ...] = RUN) -> subprocess.CompletedProcess[str]:
    """Run to the end; `stdout` holds standard output and error together."""
    return finished([*launcher, *overrides], folder)


def succeed(folder: Path, *overrides: str, launcher: tuple[str, ...] = RUN) -> str:
    """Run to the end, require exit code 0 and return the output."""
    done = run(folder, *overrides, launcher=launcher)
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_together(folder: Path, *overrides: str, processes: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Run to the end in several processes with the variables that torchrun sets; `stdout` as in `run`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    variables = ENVIRONMENT | {name: str(value) for name, value in group.items()}
    running = [
        start([*RUN, *overrides], folder, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, new_session=True)
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in running]
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return [
        subprocess.CompletedProcess(process.args, process.wait(), output)
        for process, output in zip(running, outputs, strict=True)
    ]


def together(folder: Path, *overrides: str, processes: int = 2) -> str:
    """Run to the end in several processes, require exit code 0 of each and return the output of all."""
    done = run_together(folder, *overrides, processes=processes)
    output = "".join(each.stdout for each in done)
    assert [each.returncode for each in done] == [0] * processes, output
    return output


@contextmanager
def started(folder: Path, *overrides: str) -> Iterator[ForkedProcess | subprocess.Popen[str]]:
    """A running process in a session of its own, killed at exit if still alive."""
    process = start([*RUN, *overrides], folder, new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


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
