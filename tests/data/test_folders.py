"""Listing of image folders: what is an image, what is left out is said, each real folder counts once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from semaim.data.sources import image_folders
from semaim.errors import UserError
from support.image_folders import files, make, omitted

# What is an image


def test_what_is_left_out_is_counted_and_said_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "cat/1.png", "cat/2.PNG", "cat/3.JpEg", "cat/a.gif", "cat/b.GIF", "cat/c.avif", "cat/._1.png",
         "cat/.hidden.jpg", "cat/Thumbs.db", "cat/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/cat/1.png",
         ".cache/x.png", "#recycle/1.png", "dog/noextension", "dog/4.webp")  # fmt: skip
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "dog" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "dog" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "dog" / "linked.png").symlink_to(tmp_path / "cat" / "1.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "dog" / "s.png"))
        splits = image_folders(str(tmp_path))
    assert files(splits.train) == ["cat/1.png", "cat/2.PNG", "cat/3.JpEg", "dog/4.webp", "dog/linked.png"]
    assert len(said.messages) == 1
    assert said.messages[0].startswith(f"data.root={tmp_path}: layout classes, 5 images of 2 classes; left out: ")
    assert omitted(said) == sorted(
        ["3 hidden files", "4 hidden folders", "2 special files", "2 broken links", "1 .gif file", "1 .GIF file",
         "1 .avif file", "1 extensionless file"]
    )  # fmt: skip


def test_a_class_of_files_that_are_not_read_is_empty(tmp_path: Path) -> None:
    root = make(tmp_path, "cat/1.png", "dog/a.gif", "dog/b.gif")
    with pytest.raises(
        UserError, match=r"holds 1 class folder without images: dog/; remove or fill it.*left out: 2 \.gif files"
    ):
        image_folders(root)
    with pytest.raises(UserError, match=r"holds no image .*left out: 2 \.gif files"):
        image_folders(f"{root}/dog")


@pytest.mark.parametrize("name", ["line\nbreak", os.fsdecode(b"not-\xff-utf8")])
def test_unprintable_names_are_quoted(tmp_path: Path, name: str, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path, f"{name}/1.png", f"cat/2.{name}", "cat/3.png")
    splits = image_folders(root)
    assert sorted(splits.classes) == sorted(["cat", repr(name)])
    assert splits.train.fingerprint()
    assert said.messages[-1].isprintable()
    os.unlink(tmp_path / name / "1.png")
    with pytest.raises(UserError) as refused:
        image_folders(root)
    assert str(refused.value).isprintable()
    with pytest.raises(UserError) as refused:
        image_folders(f"{root}/{name}/none")
    assert str(refused.value).isprintable()


# Each real folder once


def test_link_loops_end(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path, *(f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(4)))
    for target in ("..", "."):
        (tmp_path / "cat" / f"loop{len(target)}").symlink_to(target)
    for layout in ("auto", "classes", "flat"):
        assert len(image_folders(root, layout).train) == 8  # type: ignore[arg-type]
        assert said.messages[-1].endswith("left out: 2 repeated folders")


def test_a_folder_linked_twice_in_a_class_is_listed_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path / "root", "cat/1.png")
    make(tmp_path / "elsewhere", "2.png")
    for name in ("a", "b"):
        (tmp_path / "root" / "cat" / name).symlink_to(tmp_path / "elsewhere")
    assert files(image_folders(root).train) == ["cat/1.png", "cat/a/2.png"]
    assert said.messages[-1].endswith("left out: 1 repeated folder")


@pytest.mark.parametrize(
    ("link", "target"),
    [("dog", "cat"), ("cat/more", "../dog"), ("dog/more", "../cat"), ("pets", ".")],
)
def test_a_folder_in_two_classes_is_refused(tmp_path: Path, link: str, target: str) -> None:
    root = make(tmp_path, "cat/1.png", *(["dog/2.png"] if link != "dog" else []))
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match=r"same folder by a link.*two classes|without images: pets/"):
        image_folders(root)


def test_held_out_images_that_are_trained_on_by_a_link_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    (tmp_path / "inside").mkdir()
    for name, target in (("train", "../root/train"), ("val", "../root/train/dog")):
        (tmp_path / "inside" / name).symlink_to(target)
    with pytest.raises(UserError, match=r"inside/val is \S+ itself: accuracy on training images"):
        image_folders(str(tmp_path / "inside"))
    (tmp_path / "root" / "val" / "dog").symlink_to("../train/dog")
    with pytest.raises(
        UserError, match=r"val/dog and \S+train/dog are the same folder by a link.*held out: remove one"
    ):
        image_folders(root)


@pytest.mark.parametrize("layout", ["auto", "flat", "classes"])
def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    root = make(tmp_path, "cat/1.png", "cat/locked/2.png")
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(
        UserError, match=r"data\.root: the folder \S+/cat/locked cannot be listed \(Permission denied\)"
    ):
        image_folders(root, layout)  # type: ignore[arg-type]
