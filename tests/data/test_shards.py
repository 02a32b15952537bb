"""Shards hold the images of a folder: the same files, order and classes, and WebDataset can read them.

The pictures are those of support/photos.py: names with umlauts, spaces and commas, PNG with alpha, one file cut short.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semaim.data import shard_writing
from semaim.data.image_sets import FileImages, ImageSet, Splits, read_image
from semaim.data.names import Names
from semaim.data.reading import Unreadable
from semaim.data.shard_command import shard
from semaim.data.shard_writing import write_shards
from semaim.data.shards import MAX_OPEN, ShardImages, shards
from semaim.data.sources import image_folders
from semaim.errors import CannotWrite, Interrupted, UserError
from support.photos import BROKEN, photos
from support.small_disk import small_disk

SIZE = "shard_size=100kB"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in train/ and val/, 31 and 7 of the last class and 30 and 6 of the others; one turned by EXIF."""
    root = tmp_path_factory.mktemp("my photos")
    photos(root / "train")
    photos(root / "val", of_each=6)
    turned = Image.Exif()
    turned[0x0112] = 6
    first = root / "train" / "Äpfel vom Markt" / "Bild 00 (Größe 1).jpg"
    Image.open(first).save(first.with_name("a.b, c.JPEG"), exif=turned)
    return root


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their shards, which no test changes."""
    out = tmp_path_factory.mktemp("shards") / "of photos"
    said = shard([f"data.root={root}", f"out={out}", SIZE])
    count = len(list(out.glob("*.tar")))
    assert said.startswith(f"92 training and 19 held-out images in {count} shards, ")
    assert said.splitlines()[1].startswith("to use them: ")
    assert said.endswith(f"""run data=folder 'data.root="{out}"'""")
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def contents(images: ImageSet | None) -> list[Any]:
    """All images of a set: pixels or why there are none, and label."""

    def pixels(index: int) -> tuple[tuple[int, ...], bytes] | str:
        try:
            image = np.asarray(read_image(images, index))  # type: ignore[arg-type]
        except Unreadable as error:
            return type(error).__name__
        return image.shape, image.tobytes()

    assert images is not None
    return [(pixels(index), images.label(index)) for index in range(len(images))]


def part(splits: Splits, name: str = "train") -> ShardImages:
    images = getattr(splits, name)
    assert isinstance(images, ShardImages)
    return images


def test_shards_have_the_images_order_and_classes_of_the_folder(root: Path, written: Path) -> None:
    folder, sharded = image_folders(str(root), exif=True), shards(str(written))
    assert sharded.classes == folder.classes == ["Blätter, im Wald", "Türen & Tore", "Äpfel vom Markt"]
    assert sharded.labelled is sharded.train
    for name in ("train", "val"):
        ours, theirs = part(sharded, name), getattr(folder, name)
        assert contents(ours) == contents(theirs)
        assert [image for image, _ in contents(ours)].count("Unreadable") == 1
        assert list(ours.index.names) == list(theirs.files)
        assert ours.fingerprint() == theirs.fingerprint()
        assert len(ours.masked()) == 0
    (turned,) = [index for index in range(92) if folder.train.name(index).endswith("a.b, c.JPEG")]
    assert part(sharded).name(turned).startswith(f"{written}/train-00000")
    assert part(sharded).name(turned).endswith(".tar/Äpfel vom Markt/a.b, c.JPEG")


@pytest.mark.parametrize("exif", [True, False])
def test_other_data_read_shards_in_place_of_the_folder(root: Path, written: Path, exif: bool) -> None:
    folder, sharded = (image_folders(str(place), exif=exif) for place in (root, written))
    assert contents(sharded.train) == contents(folder.train)
    assert sharded.train.fingerprint() == folder.train.fingerprint()
    assert contents(shards(str(written), exif).train) == contents(folder.train)


def test_members_are_the_files_with_names_for_webdataset(root: Path, written: Path) -> None:
    folder = image_folders(str(root))
    for name in ("train", "val"):
        images, found = getattr(folder, name), dict[str, bytes]()
        for path in sorted(written.glob(f"{name}-*.tar")):
            assert path.stat().st_size <= 100_000 + 20_480
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    extracted = tar.extractfile(member)
                    assert member.name not in found
                    assert extracted is not None
                    found[member.name] = extracted.read()
        assert found == {
            name: content
            for index, file in enumerate(images.files)
            for name, content in (
                (f"{index:09d}.{'png' if file.endswith('png') else 'jpg'}", (images.root / file).read_bytes()),
                (f"{index:09d}.cls", str(images.label(index)).encode()),
            )
        }


def test_webdataset_reads_them(root: Path, written: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(written.glob("val-*.tar"))]
    data = webdataset.WebDataset(urls, shardshuffle=False).decode("pil", handler=webdataset.ignore_and_continue)
    samples = {int(sample["__key__"]): sample for sample in data}
    val = image_folders(str(root)).val
    assert val is not None
    readable = [index for index in range(len(val)) if not val.name(index).endswith(BROKEN)]
    assert sorted(samples) == readable
    assert [samples[index]["cls"] for index in readable] == [val.label(index) for index in readable]
    jpegs = [index for index in readable if val.name(index).endswith("jpg")]
    assert all(samples[index]["jpg"].tobytes() == Image.open(val.name(index)).tobytes() for index in jpegs)


def test_images_without_labels(tmp_path: Path, root: Path) -> None:
    shard([f"data.root={root}", "data.source.layout=flat", f"out={tmp_path / 'out'}"])
    sharded = shards(str(tmp_path / "out"))
    assert (sharded.labelled, sharded.val, sharded.classes) == (None, None, [])
    assert contents(sharded.train) == contents(image_folders(str(root), layout="flat", exif=True).train)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".jpg", ".png"}
    for layout in ("flat", "auto"):
        assert image_folders(str(tmp_path / "out"), layout=layout).labelled is None
    with pytest.raises(UserError, match=r"data.source.layout=classes, but the shards in .* of layout flat"):
        image_folders(str(tmp_path / "out"), layout="classes")


def test_few_files_are_open_and_workers_can_read(tmp_path: Path, root: Path) -> None:
    images = image_folders(str(root)).train
    assert isinstance(images, FileImages)
    write_shards({"train": images}, ["a", "b", "c"], "folder", str(root), tmp_path / "out", shard_bytes=1)
    sharded = part(shards(str(tmp_path / "out")))
    assert len(sharded.shards) == len(images) > 2 * MAX_OPEN  # a shard has at least one image
    expected = [images.encoded(index) for index in range(len(images))]
    assert [sharded.encoded(index) for index in range(len(images))] == expected
    opened = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
              if os.path.exists(f"/proc/self/fd/{number}")]  # fmt: skip
    assert len([path for path in opened if path.startswith(str(tmp_path))]) == MAX_OPEN
    spawned = pickle.loads(pickle.dumps(sharded))
    assert [spawned.encoded(index) for index in range(len(images))] == expected
    if (child := os.fork()) == 0:  # reads through the descriptors that it has inherited
        os._exit(0 if [sharded.encoded(index) for index in range(len(images))] == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Interruptions


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
        found = files_of_kind(disk / "out")
        assert found
        assert found == {name: files_of_kind(written)[name] for name in found}


def files_of_kind(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".tar" in path.name}


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


# What is missing or damaged


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


def test_names_in_one_block_are_those_given() -> None:
    given = ["a", "ü/b, c.jpg", os.fsdecode(b"not-\xff-utf8"), "z"]
    names = Names.of(given)
    assert (list(names), len(names), names[-1], names[1:3]) == (given, 4, "z", given[1:3])
    assert list(Names.of([])) == []
    with pytest.raises(IndexError):
        names[4]
    assert io.BytesIO(names.joined).read() == os.fsencode("\0".join(given))
