"""A checkpoint without one of its parts, or with one of another type, is damaged: it is named, not raised."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.checkpoints import store
from semaim.checkpoints.pretrained import load_model
from semaim.checkpoints.stored_encoder import StoredEncoder
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


# Changes inside of parts.
INSIDE: dict[str, Callable[[dict[str, Any]], object]] = {
    "architecture is a list": lambda content: content.update(architecture=[]),
    "a classifier without sizes": lambda content: content.update(architecture={"classifier": {}}),
    "width 0": lambda content: content["architecture"].update(embed_dim=0),
    "a number for a weight": lambda content: content["model"].update(pos_embed=5),
    "whole numbers for weights": lambda content: content["model"].update(
        pos_embed=content["model"]["pos_embed"].char()
    ),
    "no run folder": lambda content: content["config"].pop("run_dir"),
    "data are a list": lambda content: content["config"].update(data=[]),
    "a text for colours": lambda content: content["config"]["data"]["eval_transform"].update(mean=["a"] * 3),
    "no epochs": lambda content: content["data_position"].pop("epochs"),
    "another origin": lambda content: content["task"].update(origin={"tags": 5}),
    "numbers for options": lambda content: content.update(overrides=[1, 2]),
}


@pytest.mark.parametrize("change", INSIDE)
def test_a_change_inside_of_a_part_is_told(checkpoint: Path, tmp_path: Path, change: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    INSIDE[change](content)
    torch.save(content, tmp_path / "copy.pt")

    def use() -> None:
        stored = StoredEncoder(tmp_path / "copy.pt", store.load(tmp_path / "copy.pt"), False, None, None)
        _ = stored.content, stored.origin, stored.normalisation, stored.crop_ratio

    with pytest.raises(UserError, match=rf"^checkpoint={re.escape(str(tmp_path))}/copy.pt "):
        use()


@pytest.mark.parametrize("change", list(INSIDE)[:5])
def test_a_model_with_such_a_change_is_not_loaded(checkpoint: Path, tmp_path: Path, change: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    INSIDE[change](content)
    torch.save(content, tmp_path / "copy.pt")
    with pytest.raises(UserError, match=rf"^checkpoint={re.escape(str(tmp_path))}/copy.pt "):
        load_model(tmp_path / "copy.pt")


def test_weights_of_8_bits_are_read(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    small = content["model"]["pos_embed"].to(torch.float8_e4m3fn)
    content["model"]["pos_embed"] = small
    torch.save(content, tmp_path / "copy.pt")
    assert load_model(tmp_path / "copy.pt").state_dict()["pos_embed"].equal(small.float())
