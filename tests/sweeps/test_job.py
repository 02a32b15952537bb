"""A job from its first line to its last: a signal before its run stops the run, one after it does nothing."""

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


# The batch script blocks both signals; they arrive while the interpreter starts.
EARLIEST = """
import os, signal, subprocess
for number in (signal.SIGTERM, signal.SIGUSR2):
    os.kill(os.getpid(), number)
from semaim.core.signals import StopRequest
stop = StopRequest()
print(stop.name, subprocess.check_output(["grep", "SigBlk", "/proc/self/status"], text=True).split()[1])
stop.ignore()
for number in (signal.SIGTERM, signal.SIGUSR2):
    os.kill(os.getpid(), number)
print("done")
"""


def test_a_signal_before_the_handler_stands_is_kept_until_then() -> None:
    held_back = ["env", "--block-signal=USR2,TERM"]
    done = subprocess.run(
        [*held_back, sys.executable, "-c", EARLIEST], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"SIGUSR2 {0:016x}\ndone\n"), done.stderr


@pytest.mark.parametrize("name", [signal.SIGTERM.name, signal.SIGUSR2.name])
def test_an_early_signal_reaches_the_run(name: str) -> None:
    code = CODE.replace("{name}", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"the point {name}\n0.5\n", f"{name}: stopping soon\n")
