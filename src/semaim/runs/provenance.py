"""Provenance of a run: commit, versions, machine and command of every start."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import sys
import time
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

import semaim
from semaim.core.slurm_job import output_of, this_job

if TYPE_CHECKING:  # commands that do not train start without torch
    import torch

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "submitit", "mlflow", "numpy", "pillow")


class Start(TypedDict, total=False):
    """An entry of environment.json. The entry of a sweep has its commit and command."""

    time: str
    command: str
    folder: str
    semaim: str
    commit: str | None
    dirty: bool | None
    python: str
    packages: dict[str, str | None]
    host: str
    cpus: int
    processes: int
    device: str
    cuda: str | None
    slurm: dict[str, str | int]
    choices: dict[str, str]


def code_version() -> dict[str, Any]:
    """Commit of the checkout that contains this package, and whether it has changes; None if there is no checkout."""
    git = partial(output_of, "git", "-C", str(Path(__file__).parent))
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    commit = git("rev-parse", "HEAD")
    return {"commit": commit and commit.strip(), "dirty": bool(git("status", "--porcelain"))}


def command_line() -> str:
    """The command of this process, quoted for a shell."""
    interpreter, *words = sys.orig_argv
    if words and Path(words[0]).name == "semaim":  # the console script
        return shlex.join(["semaim", *words[1:]])
    return shlex.join([Path(interpreter).name, *words])


def describe(device: torch.device, world_size: int) -> dict[str, Any]:
    """Provenance of this start, a `Start`."""
    import torch

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line(),
        "folder": str(Path.cwd()),
        "semaim": semaim.__version__,
        **code_version(),
        "python": platform.python_version(),
        "packages": {name: next((each.version for each in distributions(name=name)), None) for name in PACKAGES},
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "processes": world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        **({"slurm": job} if (job := this_job()) else {}),
    }
