"""Checkpoint files: atomic writes with checksums, lookup of the newest intact one, loading without code execution.

A folder of checkpoints contains files `step_00000120.pt`, each with a checksum `step_00000120.pt.sha256` in the format
of the sha256sum command. The checksum is written first, then the checkpoint is renamed to its name, so in such a folder
a checkpoint without a checksum is not valid. A file named directly may lack it, for example a copy: then the checksums
of its parts are compared, which torch.save writes into the file.
"""

from __future__ import annotations

import argparse
import difflib
import glob
import logging
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from semaim.config.old_versions import upgraded, upgraded_state
from semaim.core.files import HashingWriter, atomic, sha256, write_text, writing
from semaim.errors import CannotWrite, UserError

log = logging.getLogger(__name__)
FORMAT = 2  # format 1 lacked the group choices and the task's state
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # file names in folders of timm and transformers
# Parts of a checkpoint of semaim and their types (docs/architecture.md). Other files have other parts.
PARTS: dict[str, type | tuple[type, ...]] = {
    "step": int, "architecture": (dict, type(None)), "model": dict, "loss": (float, type(None)),
    "device_seconds": (int, float), "rng": list, "task": dict, "config": dict, "choices": dict, "overrides": list,
    "data_position": dict,
}  # fmt: skip
UPGRADES = {"config": upgraded, "task": upgraded_state}  # of parts that older versions stored otherwise
Checkpoint = dict[str, Any]


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def write_checksum(path: Path, checksum: str) -> None:
    """Write the SHA-256 checksum of a file, in hexadecimal, beside it."""
    write_text(_checksum_file(path), f"{checksum}  {path.name}\n")


def _stored_checksum(path: Path) -> bytes | None:
    """The checksum in the file beside a checkpoint, empty if that is damaged; None if there is no such file."""
    file = _checksum_file(path)
    return (*file.read_bytes().lower().split()[:1], b"")[0] if file.is_file() else None


def _is_intact(path: Path) -> bool | None:
    """Whether a checkpoint has the checksum in the file beside it; None if there is no such file."""
    stored = _stored_checksum(path)
    return None if stored is None else path.is_file() and stored == sha256(path).encode()


def save(folder: Path, step: int, state: Checkpoint) -> Path:
    """Write the checkpoint of a step.

    Raises:
        CannotWrite: for example on a full disk; older checkpoints are kept.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for temporary in folder.glob("*.tmp"):  # from a process killed while saving
            temporary.unlink(missing_ok=True)
    path = folder / f"step_{step:08d}.pt"
    try:
        with atomic(path) as file:
            writer = HashingWriter(file)
            torch.save({"format": FORMAT, "step": step, **state}, cast(IO[bytes], writer))
            # an earlier checkpoint of this step must not be paired with the new checksum
            path.unlink(missing_ok=True)
            write_checksum(path, writer.hash.hexdigest())
    except CannotWrite as error:
        if not path.exists():
            _checksum_file(path).unlink(missing_ok=True)
        older = list_steps(folder)
        kept = f"the last good checkpoint is {older[-1][1]}" if older else "there is no older checkpoint"
        error.args = (f"{error}; {kept}",)
        raise
    return path


def list_steps(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of a folder's checkpoints, oldest first; raises PermissionError if it cannot be listed."""
    names = os.listdir(folder) if folder.is_dir() else []
    matches = [(re.fullmatch(r"step_(\d+)\.pt", name), folder / name) for name in names]
    return sorted((int(match[1]), path) for match, path in matches if match)


def prune(folder: Path, keep: int, is_milestone: Callable[[int], bool]) -> None:
    """Delete all checkpoints except the newest `keep` and the milestones."""
    for step, path in list_steps(folder)[:-keep]:
        if not is_milestone(step):
            path.unlink(missing_ok=True)
            _checksum_file(path).unlink(missing_ok=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint of a folder, or None if the folder has no checkpoints.

    Damaged ones (truncated, flipped bits, no checksum) are logged and skipped.

    Raises:
        UserError: if there are checkpoints but none is intact.
    """
    damaged = []
    for _, path in reversed(list_steps(folder)):
        if _is_intact(path):
            return _content(path, "checkpoint")
        damaged.append(path.name)
        log.warning("checkpoint %s is damaged (its checksum does not match); trying the one before", path)
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}): move that folder away to restart"
        )
    return None


def load(path: Path, option: str = "checkpoint") -> Checkpoint:
    """Verify and read a checkpoint file of any origin without executing code in it.

    Args:
        path: the file.
        option: configuration option that gave the path, for messages.

    Raises:
        UserError: if the file does not exist, is damaged, is not a checkpoint, or contains objects whose loading would
            run code.
    """
    if not path.is_file():
        raise UserError(f"{option}={path} does not exist{_meant(path)}")
    if (intact := _is_intact(path)) is False:
        raise UserError(
            f"{option}={path} is damaged: its checksum is not the one in {_checksum_file(path).name}. Copy both files "
            f"again, or choose another checkpoint (a run folder means its newest intact one)"
        )
    if intact is None and (part := _damaged_part(path)) is not None:
        raise UserError(
            f"{option}={path} is damaged: the checksum of its part {part} does not match. Get the file again; if it "
            f"was saved without checksums (torch.serialization.set_crc32_options), save it again with them"
        )
    return _content(path, option)


def _meant(path: Path) -> str:
    """What may be meant by a path that does not exist: a run folder, the same one folder deeper, or a similar name."""
    folder = path.parent
    if (folder / "config.yaml").is_file():
        return f": {folder} has no {path.name}; {folder} alone is its newest checkpoint"
    if not path.is_absolute() and (below := next(Path().glob(f"*/{glob.escape(str(path))}"), None)):
        return f": did you mean {below}?"
    beside = map(os.path.basename, glob.glob(f"{glob.escape(str(folder))}/*"))
    near = difflib.get_close_matches(path.name, list(beside), n=1, cutoff=0.8)
    return f": did you mean {folder / near[0]}?" if near else ""


def _damaged_part(path: Path) -> str | None:
    """The first part of a file of torch.save (a zip archive) whose checksum does not match; None for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except Exception:  # not an archive, or one with a damaged directory, which torch.load refuses, too
        return None


def _content(path: Path, option: str) -> Checkpoint:
    """The content of a checkpoint file; see `load`."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{option}={path} is not a safetensors file, or is damaged ({error})") from error
    try:
        # MAE, SAIM and SemAIM store their command-line arguments as a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive")  # rejected below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) (\S+)", str(error))
        if blocked:
            raise UserError(
                f"{option}={path} was not loaded: it is not made of plain tensors and numbers, and loading it would "
                f"run code ({blocked[1]}). If you trust it, save its state dict again with torch.save"
            ) from error
        raise UserError(f"{option}={path} is not a checkpoint, or is damaged") from error
    except Exception as error:  # for other files, the reader may raise any exception
        if "TorchScript" in str(error):
            raise UserError(
                f"{option}={path} was not loaded: it is a TorchScript archive, which is a program (OpenAI publishes "
                f"CLIP as one), and loading it would run it. If you trust it, extract the weights once, then use "
                f"{option}=weights.pth:\n"
                f"  python -c \"import torch; torch.save(torch.jit.load({str(path)!r}, map_location='cpu')"
                f".state_dict(), 'weights.pth')\""
            ) from error
        raise UserError(f"{option}={path} is not a checkpoint, or is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise UserError(f"{option}={path} holds a {type(state).__name__}, not a checkpoint")
    if "architecture" in state and state.get("format") != FORMAT:
        raise UserError(f"{option}={path} has format {state.get('format')}; this semaim reads {FORMAT}")
    if "architecture" in state:
        check_parts(state, f"{option}={path}", [key for key in PARTS if key in state])
        state |= {key: convert(state[key]) for key, convert in UPGRADES.items() if key in state}
    return state


def check_parts(state: Checkpoint, given: str, parts: Iterable[str] = PARTS) -> None:
    """Raise UserError if parts of a checkpoint are missing or of another type.

    Args:
        state: the checkpoint, of semaim.
        given: option and value that named it, for the message.
        parts: names of the parts that are needed.
    """
    if wrong := [part for part in parts if part not in state or not isinstance(state[part], PARTS[part])]:
        raise UserError(
            f"{given} is damaged, or was changed: {', '.join(wrong)} is missing or of another type. Choose another "
            f"checkpoint (a run folder means its newest intact one)"
        )


def weights_file(path: Path) -> Path | None:
    """The weights file of a path: the path itself, or the file in a folder of timm or transformers, or None."""
    if not path.is_dir():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), None)


def fingerprint(path: Path) -> str | None:
    """Fingerprint of a checkpoint, or of the newest one of a run folder; None if there is none."""
    path = weights_file(path) or path
    if path.is_dir():
        steps = list_steps(path / "checkpoints") or list_steps(path)
        return fingerprint(steps[-1][1]) if steps else None
    if not path.is_file():
        return None
    stored = _stored_checksum(path)
    return stored.decode(errors="replace") if stored else f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
