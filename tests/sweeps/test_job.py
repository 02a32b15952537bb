"""A job from its first line: a signal while it imports torch, or composes its run, stops the run."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from support.waiting import PATIENCE

CODE = """
import os, signal, sys
from types import SimpleNamespace
from semaim.sweeps import job

def load(path):
    assert "torch" not in sys.modules
    os.kill(os.getpid(), signal.{name})
    return SimpleNamespace(points=["the point"], runs=lambda point: [point])

def run_point(specs, stop, warning):
    print(*specs, stop.name)
    return 0.5

signal.signal(signal.SIGTERM, lambda *_: print("ignored by submitit"))
signal.signal(signal.SIGUSR2, lambda *_: print("requeued by submitit"))
job.Sweep.load, job.run_point = load, run_point
print(job.PointJob("sweep", 0)())
"""


@pytest.mark.parametrize("name", [signal.SIGTERM.name, signal.SIGUSR2.name])
def test_an_early_signal_reaches_the_run(name: str) -> None:
    code = CODE.replace("{name}", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"the point {name}\n0.5\n", f"{name}: stopping soon\n")
