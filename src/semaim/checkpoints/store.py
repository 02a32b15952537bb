"""Checkpoints: written atomically with a checksum, the newest intact one found again, nothing executed on loading.

A folder of checkpoints holds `step_00000120.pt` and beside each `step_00000120.pt.sha256`, in the format of the
sha256sum command. The checksum is written first, then the checkpoint appears by a rename: one without is not ours.
"""

from __future__ import annotations

import argparse
import errno
import logging
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from semaim.config.old_names import with_current_names
from semaim.core.files import HashingWriter, atomic, sha256, write_text
from semaim.errors import UserError

log = logging.getLogger(__name__)
FORMAT = 2  # 1 had neither the choices nor what a task keeps
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what folders of timm and transformers hold
State = dict[str, Any]


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save(folder: Path, step: int, state: State) -> Path:
    """Write the checkpoint of a step.

    Raises:
        UserError: if it cannot be written (no space left, say); the older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.tmp"):  # of a process that was killed while saving
        left_over.unlink(missing_ok=True)
    path = folder / f"step_{step:08d}.pt"
    try:
        with atomic(path) as file:
            writer = HashingWriter(file)
            torch.save({"format": FORMAT, "step": step, **state}, cast(IO[bytes], writer))
            # an earlier save of this step must not stand beside another checksum
            path.unlink(missing_ok=True)
            write_text(_checksum_file(path), f"{writer.hash.hexdigest()}  {path.name}\n")
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError of its own over that of a full disk
        if not path.exists():
            _checksum_file(path).unlink(missing_ok=True)
        full = errno.ENOSPC in (getattr(error, "errno", None), getattr(error.__context__, "errno", None))
        reason = "there is no space left on the device" if full else str(error)
        older = list_steps(folder)
        kept = f"the last good checkpoint is {older[-1][1]}" if older else "there is no older checkpoint"
        raise UserError(
            f"could not write checkpoint {path}: {reason}; {kept}. Make room, then run the same command again"
        ) from error
    return path


def list_steps(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of a folder's checkpoints, oldest first."""
    found = [(re.fullmatch(r"step_(\d+)\.pt", path.name), path) for path in folder.glob("step_*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)


def prune(folder: Path, keep: int, is_milestone: Callable[[int], bool]) -> None:
    """Delete all checkpoints but the newest `keep` and the milestones."""
    for step, path in list_steps(folder)[:-keep]:
        if not is_milestone(step):
            path.unlink()
            _checksum_file(path).unlink(missing_ok=True)


def newest(folder: Path) -> State | None:
    """The newest intact checkpoint of a folder, or None if there is none at all.

    A damaged one (truncated, flipped bits, no checksum) is reported in the log and passed over for the one before.

    Raises:
        UserError: if there are checkpoints but none is intact.
    """
    damaged = []
    for _, path in reversed(list_steps(folder)):
        checksum_file = _checksum_file(path)
        written = checksum_file.read_bytes().split()[:1] if checksum_file.exists() else []
        if written == [sha256(path).encode()]:
            return load(path)
        damaged.append(path.name)
        log.warning("checkpoint %s is damaged (its checksum does not match); trying the one before", path)
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}): move that folder away to start anew"
        )
    return None


def load(path: Path, option: str = "checkpoint") -> State:
    """Read a checkpoint file of any origin without executing anything in it.

    Args:
        path: the file.
        option: what named it, for messages.

    Raises:
        UserError: if there is no such file, it is no checkpoint, or it holds objects whose loading would run code.
    """
    if not path.is_file():
        raise UserError(f"{option}={path} does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{option}={path} is not a safetensors file, or is damaged ({error})") from error
    try:
        # MAE, SAIM and SemAIM store their command line, a plain record of options.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive")  # which is refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) (\S+)", str(error))
        if blocked:
            raise UserError(
                f"{option}={path} was not loaded: it is not made of plain tensors and numbers, and loading it would "
                f"run code ({blocked[1]}). If you trust it, save its state dict anew with torch.save"
            ) from error
        raise UserError(f"{option}={path} is not a checkpoint, or is damaged") from error
    except Exception as error:  # bytes that are no checkpoint make the reader fail in any way
        if "TorchScript" in str(error):
            raise UserError(
                f"{option}={path} was not loaded: it is a TorchScript archive, which is a program (OpenAI publishes "
                f"CLIP as one), and loading it would run it. If you trust it, take the weights out once, then give "
                f"{option}=weights.pth:\n"
                f"  python -c \"import torch; torch.save(torch.jit.load({str(path)!r}, map_location='cpu')"
                f".state_dict(), 'weights.pth')\""
            ) from error
        raise UserError(f"{option}={path} is not a checkpoint, or is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise UserError(f"{option}={path} holds a {type(state).__name__}, not a checkpoint")
    if "architecture" in state and state.get("format") != FORMAT:
        raise UserError(f"{option}={path} has format {state.get('format')}; this semaim reads {FORMAT}")
    if "architecture" in state and "config" in state:
        state["config"] = with_current_names(state["config"])
    return state


def weights_file(path: Path) -> Path | None:
    """The file of weights that a path means: itself, or that of a folder of timm's or transformers', or None."""
    if not path.is_dir():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), None)


def fingerprint(path: Path) -> str | None:
    """What changes when a checkpoint, or the newest one of a run folder, does; None if there is none."""
    path = weights_file(path) or path
    if path.is_dir():
        steps = list_steps(path / "checkpoints") or list_steps(path)
        return fingerprint(steps[-1][1]) if steps else None
    if not path.is_file():
        return None
    checksum = _checksum_file(path)
    return checksum.read_text().split()[0] if checksum.exists() else f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
