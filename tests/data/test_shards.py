"""Shards hold the images of a folder: the same files, order and classes, and WebDataset can read them.

The pictures are those of support/photos.py: names with umlauts, spaces and commas, PNG with alpha, one file cut short.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from semaim.data.image_sets import FileImages
from semaim.data.names import Names
from semaim.data.shard_command import shard
from semaim.data.shard_writing import write_shards
from semaim.data.shards import MAX_OPEN, shards
from semaim.data.sources import image_folders
from semaim.errors import UserError
from support.photos import BROKEN
from support.sharded import contents, part


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


def test_names_in_one_block_are_those_given() -> None:
    given = ["a", "ü/b, c.jpg", os.fsdecode(b"not-\xff-utf8"), "z"]
    names = Names.of(given)
    assert (list(names), len(names), names[-1], names[1:3]) == (given, 4, "z", given[1:3])
    assert list(Names.of([])) == []
    with pytest.raises(IndexError):
        names[4]
    assert io.BytesIO(names.joined).read() == os.fsencode("\0".join(given))
