"""Writing shards: interruptions, full disks and mistakes; the same command continues.

The pictures are those of support/photos.py: names with umlauts, spaces and commas, PNG with alpha, one file cut short.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semaim.data import shard_writing
from semaim.data.image_sets import FileImages
from semaim.data.shard_command import shard
from semaim.data.shard_writing import write_shards
from semaim.data.shards import shards
from semaim.data.sources import image_folders
from semaim.errors import CannotWrite, Interrupted, UserError
from support.sharded import SIZE, files_of
from support.small_disk import small_disk


@pytest.fixture
def stops_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Raises an error within a shard: `stops_at(2, error)` after some images of the third one."""
    original = shard_writing.write_shard

    def stop(number: int, error: BaseException) -> None:
        def write(name: str, file: Any, files: Any, limit: float, count: Callable[[int], None]) -> Any:
            if int(name[-10:-4]) == number and name.startswith("train"):
                file.write(b"half of a shard")
                raise error
            return original(name, file, files, limit, count)

        monkeypatch.setattr(shard_writing, "write_shard", write)

    yield stop  # type: ignore[misc]
    monkeypatch.setattr(shard_writing, "write_shard", original)


def test_an_interrupted_folder_is_refused_and_the_same_command_continues(
    tmp_path: Path,
    root: Path,
    written: Path,
    stops_at: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
    said: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    command = [f"data.root={root}", f"out={out}", SIZE]
    stops_at(2, KeyboardInterrupt())
    with pytest.raises(Interrupted, match="complete shards are kept"):
        shard(command)
    assert sorted(path.name for path in out.glob("*.tar*")) == ["train-000000.tar", "train-000001.tar"]
    for read in (shards, image_folders):
        with pytest.raises(UserError, match=r"holds shards that are not finished: type .* again, it continues"):
            read(str(out))
    (out / "train-000001.tar").write_bytes(b"cut short")  # as by a lost node
    (out / "train-000002.tar.123.tmp").write_bytes(b"of a process that was killed")
    with pytest.raises(UserError, match=r"was begun with shard_size=100000: type that to continue"):
        shard([f"data.root={root}", f"out={out}", "shard_size=200kB"])
    monkeypatch.undo()
    shard(command)
    inside = np.load(out / "train.npz")["shard"] == 0
    assert f"continuing after 1 complete shard with {inside.sum()} of 92 training images" in said.messages
    assert files_of(out) == files_of(written), "as without interruption, to the byte"


def test_a_folder_that_was_killed_at_its_very_end_is_complete(tmp_path: Path, root: Path, written: Path) -> None:
    command = [f"data.root={root}", f"out={tmp_path / 'out'}", SIZE]
    shard(command)
    (tmp_path / "out" / ".unfinished").mkdir()
    assert "they were complete before" in shard(command)
    assert files_of(tmp_path / "out") == files_of(written)


def shards_of(folder: Path) -> dict[str, bytes]:
    """The content of the shards of a folder that may be incomplete."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".tar" in path.name}


def test_a_full_disk_leaves_complete_shards_alone(
    tmp_path: Path, root: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", "300k") as disk:
        command = [f"data.root={root}", f"out={disk / 'out'}", SIZE]
        with pytest.raises(
            UserError, match=r"the shards will take about \d+ kB, but out=.* has 307 kB free: make room"
        ):
            shard(command)
        assert not (disk / "out").exists()
        monkeypatch.setattr(shard_writing, "_check_room", lambda *_: None)
        with pytest.raises(CannotWrite, match=r"train-00000\d\.tar cannot be written \(No space left on device\)"):
            shard(command)
        found = shards_of(disk / "out")
        assert found
        assert found == {name: shards_of(written)[name] for name in found}


def test_a_file_that_cannot_be_read_stops_the_writing(tmp_path: Path, root: Path, written: Path) -> None:
    splits = image_folders(str(root), exif=True)
    assert isinstance(splits.train, FileImages)
    gone = Path(splits.train.name(5))
    content = gone.read_bytes()
    gone.unlink()

    def write() -> None:
        assert isinstance(splits.train, FileImages)
        parts = {"train": splits.train, "val": splits.val}
        write_shards(parts, splits.classes, "folder", str(root), tmp_path / "out", 100_000)  # type: ignore[arg-type]

    try:
        with pytest.raises(UserError) as refused:
            write()
        assert str(refused.value).startswith(f"{gone} cannot be read (No such file or directory): make it readable")
    finally:
        gone.write_bytes(content)
    write()
    assert files_of(tmp_path / "out") == files_of(written)


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root={root}"], r"semaim shard needs out=<folder>, a new or empty folder"),
        (["data=digits", "out={new}"], r"data=digits has no image files"),
        (["data=cifar10", "out={new}"], r"data=cifar10 has no image files.*choose data=folder"),
        (["data.root={root}/none", "out={new}"], r"data.root=.*/none is not a folder"),
        (["data.root={root}", "out={new}", "shard_size=1kB"], r"shard_size=1kB: it must be a size of 100kB or more"),
        (["data.root={root}", "out={new}", "shard_size=big"], r"shard_size=big: it must be a size"),
        (["data.root={root}", "out={root}/out"], r"out=.* is inside of data.root="),
        (["data.root={root}", "out={root}/train"], r"out=.* is inside of data.root="),
        (["data.root={root}", "out={full}"], r"out=.* holds other files \(notes.txt, ...\): choose a new or empty"),
        (["data.root={root}", "out={new}", "trainer.epochs=3"], r"trainer.epochs=3 is no option of semaim shard"),
        (["{root}", "out={new}"], r"is no option of semaim shard"),
        (["data.root={root}", "out={new}", "data.val_fraction=0.1"], r"data.val_fraction=0.1 is for runs"),
        (
            ["data.root={root}", "out={new}", "data.source.masks={full}"],
            r"shards hold no masks: leave data.source.masks out",
        ),
        (["data.root={written}", "out={new}"], r"data.root=.* holds shards already"),
        (["data=shards", "data.root={root}", "out={new}"], r"data.root=.* holds no shards"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    tmp_path: Path, root: Path, written: Path, words: list[str], message: str
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    mask = Path("train", "Türen & Tore", "Bild 00 (Größe 1).png")
    (full / mask).parent.mkdir(parents=True)
    (full / mask).touch()
    places = {"root": root, "new": tmp_path / "new", "full": full, "written": written}
    with pytest.raises(UserError, match=message):
        shard([word.format(**places) for word in words])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert sorted(path.name for path in full.iterdir()) == ["notes.txt", "train"]
    assert not (root / "out").exists()


def test_folders_that_are_no_shards_are_refused(tmp_path: Path, root: Path, written: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.* holds no shards: .*shard .*writes some, and data=folder reads"):
        shards(str(root))
    with pytest.raises(UserError, match=r"is not a folder: set data.root to the folder that holds the shards"):
        shards(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"data.source.masks=.*: shards .* hold no masks"):
        image_folders(str(written), masks=str(root))
    with pytest.raises(UserError, match=r"out=.* holds no shards to verify"):
        shard([f"out={root}"], verify_only=True)
    with pytest.raises(UserError, match=r"data.root=x has no effect with --verify"):
        shard(["data.root=x", f"out={written}"], verify_only=True)
