"""What a measurement is of: date, command, hardware, versions, commit, and whether others used the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from importlib.metadata import distributions
from typing import Any

import torch

import semaim
from semaim.runs.provenance import code_version
from semaim.training.peak import processor

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
IDLE = 0.3  # processes that run or wait on an idle machine, on average over a minute, per core


def environment(device: torch.device) -> dict[str, Any]:
    """What the results of all benchmarks have in common; called before the measurement, whose load does not count."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    code = code_version()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "hardware": {
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "gpus": torch.cuda.device_count() if device.type == "cuda" else 0,
            "cpu": " ".join(processor().replace("(R)", "").split()),
            "cpu_cores": cores,
            "torch_threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "semaim": semaim.__version__,
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            **{name: next((each.version for each in distributions(name=name)), None) for name in PACKAGES},
        },
        "commit": code["commit"],
        "dirty": code["dirty"],
        "load_before": load,
        "busy": load > IDLE * cores,  # others used the machine: compare ratios, not absolute times
    }


def choose(device: str) -> torch.device:
    """The device of this name; "auto" is the GPU if there is one."""
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    return torch.device("cuda" if cuda else "cpu")


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products; "auto" is bf16 on a GPU."""
    bf16 = device.type == "cuda" if precision == "auto" else precision == "bf16"
    return torch.bfloat16 if bf16 else torch.float32
