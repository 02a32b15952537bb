"""A checkpoint without one of its parts, or with one of another type, is damaged: it is named, not raised."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from semaim.checkpoints import store
from semaim.core.files import sha256
from semaim.errors import UserError
from support.encoders import newest
from support.in_process import SMALL, go


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newest(go(tmp_path_factory.mktemp("run"), *SMALL, "run_name=run", "trainer.max_steps=1"))


@pytest.mark.parametrize("part", store.PARTS)
def test_a_part_of_another_type_is_named(checkpoint: Path, tmp_path: Path, part: str) -> None:
    torch.save(torch.load(checkpoint, weights_only=True) | {part: "text"}, tmp_path / "copy.pt")
    with pytest.raises(UserError, match=rf"^checkpoint={re.escape(str(tmp_path))}/copy.pt is damaged, .*: {part} is "):
        store.load(tmp_path / "copy.pt")


@pytest.mark.parametrize("part", store.PARTS)
def test_a_run_does_not_continue_without_a_part(checkpoint: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(checkpoint.parents[1], folder)
    content = torch.load(checkpoint, weights_only=True)
    del content[part]
    copy = folder / "checkpoints" / checkpoint.name
    torch.save(content, copy)
    copy.with_name(f"{copy.name}.sha256").write_text(f"{sha256(copy)}  {copy.name}\n")
    with pytest.raises(UserError, match=rf"^the newest checkpoint in .* is damaged, or was changed: {part} is missing"):
        go(tmp_path, *SMALL, "run_name=run", "trainer.max_steps=2")


def test_an_intact_one_is_read(checkpoint: Path) -> None:
    content = store.load(checkpoint)
    assert content["step"] == 1
    store.check_parts(content, "it")
