"""Layouts of image folders: what is ambiguous is refused with the option that decides, what is left out is said."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from semaim.data.image_sets import FileImages, ImageSet
from semaim.data.sources import image_files, image_folders
from semaim.errors import UserError


def make(root: Path, *files: str) -> str:
    """Empty files below a folder, of which only the names matter; returns the folder."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return str(root)


def files(images: ImageSet | None) -> list[str]:
    assert isinstance(images, FileImages)
    return [str(file) for file in images.files]


def labelled(images: ImageSet | None) -> list[tuple[str, int]]:
    assert images is not None
    return list(zip(files(images), map(images.label, range(len(images))), strict=True))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log messages."""
    caplog.set_level(logging.INFO, "semaim")
    return caplog


def omitted(said: pytest.LogCaptureFixture, message: int = -1) -> list[str]:
    """What a message says to be left out."""
    return sorted(said.messages[message].partition("; left out: ")[2].split(", "))


# Splits and classes


@pytest.mark.parametrize(
    ("images", "suspects"),
    [
        (["airplane/a.png", "bird/b.png", "train/c.png"], ["train"]),
        (["airplane/a.png", "train/c.png", "val/c.png"], ["train", "val"]),
        (["training/a/1.png", "validation/a/2.png", "test/a/3.png"], ["test", "training", "validation"]),
        (["Train/a/1.png", "Val/a/2.png"], ["Train", "Val"]),
        (["TRAIN/a/1.png"], ["TRAIN"]),
        (["train/a/1.png", "test/a/2.png"], ["test", "train"]),
        (["train/a/1.png", "val/a/2.png", "validation/a/3.png"], ["train", "val", "validation"]),
        (["train2017/a/1.png", "val2017/a/2.png", "annotations/x.json"], ["train2017", "val2017"]),
        (["train_images/a/1.png", "test-set/a/2.png"], ["test-set", "train_images"]),
        (["cat/1.png", "dev/2.png"], ["dev"]),
        (["val/a/1.png", "valid/a/2.png"], ["val", "valid"]),
        (["1.png", "val/a/1.png"], ["val"]),
        (["img_train/1.png", "img_test/2.png", "cat/3.png"], ["img_test", "img_train"]),
    ],
)
def test_folders_that_may_be_splits_are_refused(tmp_path: Path, images: list[str], suspects: list[str]) -> None:
    root = make(tmp_path, *images)
    with pytest.raises(UserError) as refused:
        image_folders(root)
    message = str(refused.value)
    assert message.startswith(f"{root} holds the folders {', '.join(f'{name}/' for name in suspects)}")
    for choice in ("splits", "classes", "flat"):
        assert f"data.source.layout={choice}" in message


@pytest.mark.parametrize("inner", ["archive/train/cat/1.png", "cat/val/1.png", "images/deep/Test/1.png"])
def test_splits_inside_a_class_are_refused(tmp_path: Path, inner: str) -> None:
    root = make(tmp_path, inner, "cat/2.png")
    with pytest.raises(
        UserError, match=r"may be a split, but would belong to a class of .*data\.source\.layout=classes"
    ):
        image_folders(root)
    assert len(image_folders(root, "classes").train) == 2


@pytest.mark.parametrize("outer", [["fold0", "fold1"], ["photos"]])
def test_folders_of_the_same_classes_are_refused(tmp_path: Path, outer: list[str]) -> None:
    root = make(tmp_path, *(f"{name}/{kind}/1.png" for name in outer for kind in ("cat", "dog")))
    with pytest.raises(
        UserError, match=r"all hold the folders cat/, dog/, which may be the classes: set data\.root to"
    ):
        image_folders(root)
    assert image_folders(root, "classes").classes == outer


def test_names_that_only_look_like_splits(tmp_path: Path) -> None:
    root = make(tmp_path, "bullet_train/1.png", "steam_engine/images/2.png", "test tube/images/3.png")
    assert image_folders(root).classes == ["bullet_train", "steam_engine", "test tube"]
    (tmp_path / "tiny").mkdir()
    root = make(tmp_path / "tiny", "n01/images/1.png", "n02/images/2.png")
    assert image_folders(root).classes == ["n01", "n02"]


def test_the_option_decides(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path, "airplane/a.png", "bird/b.png", "train/deep/c.png", "train/d.png")
    classes = image_folders(root, "classes")
    assert classes.classes == ["airplane", "bird", "train"]
    assert labelled(classes.train) == [
        ("airplane/a.png", 0),
        ("bird/b.png", 1),
        ("train/d.png", 2),
        ("train/deep/c.png", 2),
    ]
    splits = image_folders(root, "splits")
    assert (labelled(splits.train), splits.classes, splits.val) == ([("deep/c.png", 0)], ["deep"], None)
    assert omitted(said) == ["1 airplane/ folder", "1 bird/ folder", "1 loose image"]
    assert len(image_folders(root, "flat").train) == 4
    with pytest.raises(UserError, match=r"layout=splits, but \S+ holds no folder train/ \(cat/\)"):
        image_folders(make(tmp_path / "other", "cat/a.png"), "splits")


def test_train_and_val_alone_are_splits(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """A class of this name within them is one, and folders beside them without training images are left out."""
    root = make(tmp_path, "train/train/1.png", "train/cat/2.png", "val/train/3.png", "val/cat/4.png", "test/5.png",
                "devkit/readme.txt", "preview.png")  # fmt: skip
    splits = image_folders(root)
    assert labelled(splits.train) == [("cat/2.png", 0), ("train/1.png", 1)]
    assert labelled(splits.val) == [("cat/4.png", 0), ("train/3.png", 1)]
    assert said.messages[-1].startswith(f"data.root={root}: layout splits, 2 images of 2 classes, 2 held out; left")
    assert omitted(said) == ["1 devkit/ folder", "1 loose image", "1 test/ folder"]
    with pytest.raises(UserError, match=r"layout=classes, but \S+ holds train/, val/ alone, which are splits"):
        image_folders(make(tmp_path / "plain", "train/a/1.png", "val/a/2.png"), "classes")


def test_layout_flat_says_that_it_trains_on_held_out_images(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path, "train/a/1.png", "val/a/2.png")
    assert len(image_folders(root, "flat").train) == 2
    assert f"{root}/train and {root}/val are both trained on" in said.text


def test_images_beside_folders(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path, "train/loose.png", "train/cat/1.png", "val/cat/2.png", "val/other.png")
    with pytest.raises(
        UserError, match=r"train holds both images \(loose\.png, .*\) and folders \(cat/\).*layout=splits"
    ):
        image_folders(root)
    assert (files(image_folders(root, "splits").train)) == ["cat/1.png"]
    assert said.messages[-1].endswith("left out: 2 loose images")


def test_held_out_images_without_class_folders(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path / "one", "train/cat/1.png", "val/2.png")
    with pytest.raises(UserError, match=r"val holds images without classes, .*train has class folders"):
        image_folders(root)
    flat = image_folders(make(tmp_path / "two", "train/1.png", "val/2.png"))
    assert (files(flat.train), flat.labelled, flat.val) == (["1.png"], None, None)
    assert said.messages[-1].endswith("1 image; left out: 1 val/ folder")


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


# Masks and images=


def test_masks_follow_the_same_rules(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path / "images", "cat/1.png", "cat/2.jpg", "cat/3.jpg", "cat/4.jpg")
    masks = make(tmp_path / "masks", "cat/1.png", "cat/2.PNG", "cat/.3.png", "cat/3.gif")
    os.mkfifo(tmp_path / "masks" / "cat" / "4.png")
    (tmp_path / "masks" / "cat" / "loop").symlink_to("..")
    assert image_folders(root, masks=masks).train.masked().tolist() == [0]
    assert said.messages[0].startswith(f"data.source.masks={masks}: 1 mask; left out: ")
    assert omitted(said, 0) == sorted(
        ["1 .PNG file", "1 .gif file", "1 hidden file", "1 repeated folder", "1 special file"]
    )
    flat = make(tmp_path / "flat", "a.png", "deep/b.png")
    assert image_folders(flat, "flat", make(tmp_path / "flat_masks", "deep/b.png")).train.masked().tolist() == [1]


def test_masks_among_the_images_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path, "images/1.png", "masks/1.png")
    for masks in (root, f"{root}/masks", f"{root}/../{tmp_path.name}/masks"):
        with pytest.raises(UserError, match=r"data\.source\.masks=\S+ is inside data\.root=.* taken for images"):
            image_folders(root, masks=masks)
    make(tmp_path / "sets", "train/a/1.png", "val/a/2.png", "masks/train/a/1.png")
    found = image_folders(f"{root}/sets", "splits", masks=f"{root}/sets/masks")
    assert found.train.masked().tolist() == [0]


def test_given_images(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path, "a.png", "b.gif", "deep/c.jpg", "deep/.d.jpg")
    (tmp_path / "deep" / "loop").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.png")
    assert files(image_files([root, f"{root}/b.gif"])) == [f"{root}/a.png", f"{root}/deep/c.jpg", f"{root}/b.gif"]
    assert said.messages[-1].startswith(f"images={root}: 2 images; left out: ")
    for given in (f"{root}/pipe.png", f"{root}/none", "", "/dev/null"):
        with pytest.raises(UserError, match=rf"images={given} is neither a file nor a folder"):
            image_files([given])


def test_an_empty_root_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path, "cat/1.png"))
    with pytest.raises(UserError, match=r"data\.root= is not a folder"):
        image_folders("")
    with pytest.raises(UserError, match=r"data\.source\.masks= is not a folder"):
        image_folders(".", masks="")
