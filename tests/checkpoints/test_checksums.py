"""A checksum is looked at wherever a checkpoint file is read: by name, in a folder, from Python and in an export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import semaim
from semaim.checkpoints import store
from semaim.checkpoints.pretrained import read_checkpoint
from semaim.errors import UserError
from semaim.export.export import Options, export
from semaim.teachers import Teacher
from support.in_process import run_here
from support.saving import is_of, state_of

EVALUATIONS = ("knn", "linprobe", "finetune", "fewshot", "features", "visualize", "pretrain")


def flipped(path: Path) -> Path:
    """Flip one bit of a number in the largest tensor of a file, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """A damaged checkpoint of a run that has no other."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(pretrained, folder)
    (newest,) = sorted((folder / "checkpoints").glob("*.pt"))[-1:]
    flipped(newest)
    assert torch.load(newest, weights_only=True)["step"] == 2, "torch reads it"
    return newest


@pytest.mark.parametrize("task", EVALUATIONS)
def test_no_task_reads_a_damaged_file(
    damaged: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(tmp_path, f"task={task}", "tracking=none", "run_name=x", f"checkpoint={damaged}") == 2
    said = capsys.readouterr().err
    assert f"error: checkpoint={damaged} is damaged: its checksum is not the one in {damaged.name}.sha256" in said
    assert not (tmp_path / "runs" / "x").exists()


def test_nothing_else_reads_a_damaged_file(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint=.* is damaged: its checksum"):
        semaim.load_model(damaged)
    with pytest.raises(UserError, match=r"checkpoint=.* is damaged: its checksum"):
        export(Options(str(damaged), output=str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"target\.weights=.* is damaged: its checksum"):
        Teacher(None, str(damaged), True, False, "data", 4, (0.5,) * 3, (0.5,) * 3)


def test_a_copy_without_its_checksum_file_is_checked_by_what_it_holds(tmp_path: Path, three: Path) -> None:
    copy = Path(shutil.copy(three / "step_00000003.pt", tmp_path / "copy.pt"))
    assert is_of(store.load(copy), 3)
    with pytest.raises(UserError, match=r"copy\.pt is damaged: the checksum of its part .*data/0 does not match"):
        store.load(flipped(copy))


def test_a_file_of_another_project_is_checked_by_what_it_holds(tmp_path: Path) -> None:
    torch.save({"state_dict": state_of(1)}, tmp_path / "theirs.pth")
    read_checkpoint(tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"target\.weights=.*theirs\.pth is damaged: the checksum of its part"):
        read_checkpoint(flipped(tmp_path / "theirs.pth"), "target.weights")
    torch.save({"state_dict": state_of(1)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth")["state_dict"]["name"] == "step 1", "the old format has no checksums"


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xfe", b"0 other"])
def test_a_damaged_checksum_file_is_no_checksum(three: Path, content: bytes) -> None:
    path = three / "step_00000003.pt"
    path.with_name(f"{path.name}.sha256").write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its checksum"):
        store.load(path)
    assert store.fingerprint(path), "and no traceback"


def test_any_file_may_have_a_checksum_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weights": torch.ones(1000)}, path)
    path.with_name(f"{path.name}.sha256").write_text(f"{store.sha256(path)}  {path.name}\n")
    read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="is damaged: its checksum"):
        read_checkpoint(flipped(path).parent)


def test_an_exported_file_is_checked(pretrained: Path, tmp_path: Path) -> None:
    export(Options(str(pretrained), output=str(tmp_path / "out")))
    read_checkpoint(tmp_path / "out")
    with pytest.raises(UserError, match="is damaged: its checksum"):
        read_checkpoint(flipped(tmp_path / "out" / "model.safetensors").parent)


@pytest.mark.parametrize("mask", [0x80, 0x01])
def test_any_damage_to_the_directory_of_a_copy_is_told(tmp_path: Path, three: Path, mask: int) -> None:
    copy = Path(shutil.copy(three / "step_00000003.pt", tmp_path / "copy.pt"))
    intact = copy.read_bytes()
    for place in range(intact.index(b"PK\x01\x02"), len(intact)):
        copy.write_bytes(intact[:place] + bytes([intact[place] ^ mask]) + intact[place + 1 :])
        with suppress(UserError):
            assert is_of(store.load(copy), 3), "a byte that is not used"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda _: None])
def test_what_is_no_file_is_skipped(three: Path, make: Callable[[Path], object]) -> None:
    path = three / "step_00000003.pt"
    path.unlink()
    make(path)
    assert is_of(store.newest(three) or {}, 2)


def test_a_folder_in_place_of_a_checksum_is_no_checksum(three: Path) -> None:
    file = three / "step_00000003.pt.sha256"
    file.unlink()
    file.mkdir()
    assert is_of(store.newest(three) or {}, 2)
    assert is_of(store.load(three / "step_00000003.pt"), 3), "like a copy without one"


def test_a_checksum_in_capital_letters_holds(three: Path) -> None:
    file = three / "step_00000003.pt.sha256"
    file.write_text(file.read_text().upper())
    assert is_of(store.load(three / "step_00000003.pt"), 3)
