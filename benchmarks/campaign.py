"""All benchmarks, most valuable first, within a number of minutes. Each is a process of its own with a time limit, and
writes a JSON file; what does not fit into the time is named and left out."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benchmarks import ROOT
from benchmarks.hardware import choose

# Name of the file, command line, and the longest time in seconds.
Plan = list[tuple[str, str, int]]

ON_GPU: Plan = [
    ("step_base_256", "step --model base --batch-size 256 --repeats 6", 90),
    ("step_base_64", "step --model base --batch-size 64", 70),
    ("step_large_128", "step --model large --batch-size 128 --repeats 6", 90),
    ("data", "data --images 1024", 60),
    ("parts_base_256", "parts --model base --batch-size 256", 40),
    ("knn", "knn --repeats 1", 60),
    ("startup", "startup --repeats 2 --options tracking=none data=shapes evaluators=[]", 60),
    ("scaling", "scaling", 60),
    ("methods_base_64", "methods --model base --batch-size 64", 60),
    ("step_large_64", "step --model large --batch-size 64 --images 0 --repeats 6", 80),
    ("step_base_128", "step --model base --batch-size 128 --images 0 --repeats 6", 60),
]
ON_CPU: Plan = [
    ("step_tiny_64", "step --model tiny --image-size 32 --patch-size 4 --batch-size 64 --repeats 15", 240),
    ("step_base_4", "step --model base --batch-size 4 --no-compile --images 0 --warmup 1 --repeats 4", 500),
    ("data", "data --images 256", 120),
    ("parts_base_4", "parts --model base --batch-size 4 --warmup 1 --repeats 5", 240),
    ("knn", "knn", 120),
    ("startup", "startup", 180),
    ("scaling", "scaling --model tiny --image-size 32 --patch-size 4", 120),
    ("methods_tiny_64", "methods --model tiny --image-size 32 --patch-size 4", 120),
]
SMALL: Plan = [
    (name, f"{name} --small", 200) for name in ("step", "data", "parts", "knn", "startup", "scaling", "methods")
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `all`."""
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all together")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/new"), help="folder of the results")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="only results whose names begin so, such as step")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds, to see that it works")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(args: argparse.Namespace) -> int:
    """Run them; the exit code is 1 if one failed. Running out of time is no failure."""
    plan = SMALL if args.small else ON_GPU if choose(args.device).type == "cuda" else ON_CPU
    began, failed = time.monotonic(), False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the benchmark that runs
    for name, words, longest in plan:
        if args.only and not name.startswith(tuple(args.only)):
            continue
        left = args.minutes * 60 - (time.monotonic() - began)
        if left < min(longest, 20):
            print(f"{name}: left out, no time left", flush=True)
            continue
        file = args.out.resolve() / f"{name}.json"
        command = [sys.executable, "-m", "benchmarks", *words.split(), "--device", args.device, "--json", str(file)]
        started = time.monotonic()
        code = bounded(command, min(longest, left))
        failed |= code not in (0, None)
        outcome = {0: "done", None: "stopped by its time limit"}.get(code, f"failed with exit code {code}")
        print(f"{name}: {outcome} after {time.monotonic() - started:.0f} s\n", flush=True)
    return int(failed)


def bounded(command: list[str], seconds: float) -> int | None:
    """The exit code of a command; None if it is killed, with all processes that it started, after some seconds."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
