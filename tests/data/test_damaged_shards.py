"""Shards that are missing, damaged, newer or of other images are named, and repaired by the same command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from semaim.data.image_sets import read_image
from semaim.data.reading import Unreadable
from semaim.data.shard_command import shard
from semaim.data.shards import shards
from semaim.errors import UserError
from support.sharded import contents, files_of, part


@pytest.fixture
def copy(tmp_path: Path, written: Path) -> Path:
    """A copy of the shards, to damage."""
    out = tmp_path / "copy"
    out.mkdir()
    for path in written.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_missing_and_incomplete_shards_are_named_and_written_again(root: Path, written: Path, copy: Path) -> None:
    (copy / "train-000001.tar").unlink()
    os.truncate(copy / "val-000000.tar", 700)
    with pytest.raises(UserError) as refused:
        shards(str(copy))
    message = str(refused.value)
    assert f"{copy / 'train-000001.tar'} is missing (No such file or directory) (2 of " in message
    assert f"""shard data=folder 'data.root="{root}"' out={copy}""" in message
    with pytest.raises(UserError, match=r"(?s)2 of \d+ shards cannot be used:.*has 700 bytes and was written with"):
        shard([f"out={copy}"], verify_only=True)
    assert "they were complete before" not in shard([f"data.root={root}", f"out={copy}"])
    assert files_of(copy) == files_of(written)
    assert "all checksums are correct" in shard([f"out={copy}"], verify_only=True)


def test_changed_bytes_are_an_unreadable_image_and_found_by_their_checksum(copy: Path) -> None:
    images = part(shards(str(copy)))
    place, victim = images.index, 40
    path = copy / images.shards[place.shard_N[victim]]["file"]
    content = bytearray(path.read_bytes())
    content[int(place.offset_N[victim]) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"its bytes in the shard are not those that were written: .* looks for all"):
        read_image(images, victim)
    assert [image for image, _ in contents(images)].count("Unreadable") == 2
    with pytest.raises(UserError, match=rf"1 of \d+ shards cannot be used:\n.*{path.name} is damaged: its SHA-256"):
        shard([f"out={copy}"], verify_only=True)
    (copy / "val.npz").write_bytes((copy / "train.npz").read_bytes())
    with pytest.raises(UserError, match=r"val\.npz is damaged.*its SHA-256 is not the one in shards.json"):
        shards(str(copy))


def test_a_newer_version_is_refused(copy: Path) -> None:
    manifest = copy / "shards.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match=r"shards\.json is damaged, of a newer version .*update semaim"):
        shards(str(copy))


def test_other_images_are_not_mixed_with_those_of_a_folder(root: Path, copy: Path) -> None:
    before = files_of(copy)
    with pytest.raises(UserError, match=r"out=.* has the images of .*, and data.root=.*/train has others. Delete this"):
        shard([f"data.root={root / 'train'}", f"out={copy}"])
    with pytest.raises(UserError, match=r"with data.source.exif=true: choose the same"):
        shard(["data=imagenet", f"data.root={root}", f"out={copy}"])
    new = root / "val" / "Türen & Tore" / "neu.png"
    Image.new("L", (8, 8)).save(new)
    try:
        with pytest.raises(UserError, match="whose files were added, removed, renamed or moved to another class since"):
            shard([f"data.root={root}", f"out={copy}"])
    finally:
        new.unlink()
    (copy / "train-000000.tar").unlink()
    old = root / "train" / "Türen & Tore" / "Bild 00 (Größe 1).jpg"
    content = old.read_bytes()
    old.write_bytes(content + b"x")
    try:
        for path in copy.glob("train-*.tar"):
            path.unlink()
        with pytest.raises(
            UserError, match=r"cannot be written again: the content of its images in .* is another than"
        ):
            shard([f"data.root={root}", f"out={copy}"])
    finally:
        old.write_bytes(content)
    shard([f"data.root={root}", f"out={copy}"])
    assert files_of(copy) == before
