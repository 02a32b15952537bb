"""Provenance of a run: commit, versions, machine and command of every start."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

import semaim
from semaim.core.files import read_json
from semaim.core.site import site_folder
from semaim.core.slurm_job import output_of, this_job

if TYPE_CHECKING:  # commands that do not train start without torch
    import torch

PACKAGE = Path(semaim.__file__).parent
COPIED_FROM = "code_version.json"  # beside a copy of this package: the version of its original
MAX_FILES = 8  # that a message names
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "submitit", "mlflow", "numpy", "pillow")


class Start(TypedDict, total=False):
    """An entry of environment.json. The entry of a sweep has its code, command, name in MLflow and swept options."""

    time: str
    command: str
    folder: str
    site: str
    semaim: str
    commit: str | None
    dirty: bool | None
    branch: str
    repository: str
    sources: str
    title: str
    swept: list[str]
    user: str
    python: str
    packages: dict[str, str | None]
    host: str
    cpus: int
    processes: int
    device: str
    cuda: str | None
    slurm: dict[str, str | int]
    choices: dict[str, str]
    method: str
    config_dirs: list[str]


class CodeVersion(TypedDict):
    """Commit of the checkout that contains this package and whether it has changes (None without a checkout), its
    branch and the address of its repository if they are known, and a checksum of the sources of this package."""

    commit: str | None
    dirty: bool | None
    branch: NotRequired[str]
    repository: NotRequired[str]
    sources: NotRequired[str]  # absent in what earlier versions have stored


def code_version() -> CodeVersion:
    """The version of the code of this process; in a copy of the code, that of the original."""
    if (original := read_json(PACKAGE.parent / COPIED_FROM, CodeVersion)) is not None:
        return original
    sources = checksum(json.dumps(checksums()).encode())
    git = partial(output_of, "git", "-C", str(PACKAGE))
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None, "sources": sources}
    commit = git("rev-parse", "HEAD")
    version: CodeVersion = {"commit": commit and commit.strip(), "dirty": bool(git("status", "--porcelain"))}
    if branch := (git("symbolic-ref", "--short", "--quiet", "HEAD") or "").strip():  # none at a detached commit
        version["branch"] = branch
    if repository := (git("config", "remote.origin.url") or "").strip():
        version["repository"] = re.sub(r"(://)[^/]*@", r"\1", repository)  # without user and password
    return version | {"sources": sources}


def checksums() -> dict[str, str]:
    """The checksum of each source file of this package."""
    return {str(path.relative_to(PACKAGE)): checksum(path.read_bytes()) for path in sorted(PACKAGE.rglob("*.py"))}


def checksum(content: bytes) -> str:
    """A short checksum."""
    return hashlib.sha256(content).hexdigest()[:12]


def code_changes(before: Mapping[str, Any], now: Mapping[str, Any], file: Path) -> str | None:
    """How the code of this process differs from an earlier version; None if it does not, or if that is unknown.

    Args:
        before: the earlier version.
        now: that of this process.
        file: JSON file with the `checksums` of the earlier version, if there is one.
    """
    if "commit" not in before or all(before.get(key, now[key]) == now[key] for key in ("commit", "dirty", "sources")):
        return None
    old, new = read_json(file, dict[str, str]), checksums()
    names = sorted(name for name in {*(old or {}), *new} if old and old.get(name) != new.get(name))
    if old is not None and not names:
        return None
    versions = [
        f"commit {code['commit'] or 'unknown'}{' (modified)' if code['dirty'] else ''}" for code in (before, now)
    ]
    more = f" and {len(names) - MAX_FILES} more" if len(names) > MAX_FILES else ""
    return f"{versions[0]} then, {versions[1]} now" + (f"; {', '.join(names[:MAX_FILES])}{more}" if names else "")


def command_line() -> str:
    """The command of this process, quoted for a shell."""
    interpreter, *words = sys.orig_argv
    if words and Path(words[0]).name == "semaim":  # the console script
        return shlex.join(["semaim", *words[1:]])
    return shlex.join([Path(interpreter).name, *words])


def user() -> str:
    """Name of the user, or the number of one without a name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def describe(device: torch.device, world_size: int) -> dict[str, Any]:
    """Provenance of this start, a `Start`."""
    import torch

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line(),
        "folder": str(Path.cwd()),
        "user": user(),
        **({"site": str(site)} if (site := site_folder()) else {}),
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
