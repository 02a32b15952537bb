"""Layouts of image folders: what is ambiguous is refused with the option that decides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semaim.data.sources import image_files, image_folders
from semaim.errors import UserError
from support.image_folders import files, labelled, make, omitted

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
