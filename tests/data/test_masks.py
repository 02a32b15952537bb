"""Object masks: they are transformed with their images, counted per patch, read in Pascal VOC's format, and kept by
subsets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semaim.data.image_sets import ArrayImages, FileImages
from semaim.data.masks import VOID
from semaim.data.object_patches import object_patches, object_share
from semaim.data.sources import image_folders
from semaim.data.subsets import Subset, hold_out
from semaim.data.transforms import evaluation, on_mask
from semaim.errors import UserError
from semaim.preflight.check import check_sweep
from support.evaluating import image_data
from support.in_process import composed

STILL = evaluation(8, crop_ratio=1.0)


def masked(masks_NHW, labels=None):
    """Black images with masks."""
    count, height, width = np.shape(masks_NHW)
    labels = [0] * count if labels is None else labels
    return ArrayImages(np.zeros((count, height, width, 3)), labels, "set", np.array(masks_NHW, np.uint8))


# Masks are transformed with their images


def test_a_mask_is_resized_and_cropped_as_its_image():
    # 16x24 in blocks of 2x2: with a shorter side of 8 pixels each block is a pixel, and the central 4x4 are kept.
    blocks_HW = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    mask_HW = blocks_HW.repeat(2, 0).repeat(2, 1)
    found = on_mask(evaluation(4, crop_ratio=0.5), mask_HW)
    assert type(found) is torch.Tensor
    assert found.dtype == torch.uint8
    assert found.tolist() == blocks_HW[2:6, 4:8].tolist()


@pytest.mark.parametrize(("height", "width", "size"), [(90, 60, 32), (45, 120, (32, 48)), (20, 30, 32), (32, 32, 32)])
def test_object_is_where_it_is_in_the_image(height, width, size):
    """A white rectangle on black and its mask differ by at most one pixel along the border."""
    mask_HW = np.zeros((height, width), np.uint8)
    mask_HW[height // 3 : 2 * height // 3, width // 4 : width // 2] = 7
    image = Image.fromarray((mask_HW > 0).astype(np.uint8) * 255).convert("RGB")
    transform = evaluation(size, mean=(0, 0, 0), std=(1, 1, 1))
    white_HW = transform(image)[0] > 0.5
    mask = on_mask(transform, mask_HW)
    assert mask.shape == white_HW.shape
    assert set(mask.unique().tolist()) == {0, 7}  # no intermediate values
    for found_HW, other_HW in ((mask > 0, white_HW), (white_HW, mask > 0)):
        wider = torch.nn.functional.max_pool2d(other_HW[None].float(), 3, 1, 1)[0] > 0
        assert (found_HW <= wider).all()
    assert mask.bool().sum() > 20


# Patches


def test_share_of_object_by_hand():
    mask_HW = np.zeros((8, 8), np.uint8)
    mask_HW[:4, :4] = [[1, 1, 0, 0]] * 4  # half of the patch
    mask_HW[:4, 4:] = [[3, 0, 0, 0], [VOID] * 4, [VOID] * 4, [VOID] * 4]  # a quarter of the pixels that are not void
    mask_HW[4:, :4] = VOID  # nothing is known
    mask_HW[4:, 4:] = [[VOID] * 4, [254] * 4, [1] * 4, [0, 0, 0, 1]]  # 9 of 12
    assert object_share(mask_HW, STILL, 4).tolist() == [[0.5, 0.25], [0, 0.75]]
    images = masked([mask_HW, np.zeros((8, 8)), np.ones((8, 8))])
    assert object_patches(images, [0, 2, 1], STILL, 4).tolist() == [
        [True, False, False, True],
        [True] * 4,
        [False] * 4,
    ]
    assert object_patches(images, [0], STILL, 2).shape == (1, 16)


def test_patches_of_a_grid_that_is_not_square():
    mask_HW = np.zeros((8, 16), np.uint8)  # columns 2 to 13 are kept
    mask_HW[4:8, 2:6] = 1
    share = object_share(mask_HW, evaluation((8, 12), crop_ratio=1.0), 4)
    assert share.tolist() == [[0, 0, 0], [1, 0, 0]]  # raster index 3


def test_images_without_masks_have_no_known_object():
    images = ArrayImages(np.zeros((2, 8, 8, 3)), [0, 1], "set")
    assert (images.masked().tolist(), images.mask(0)) == ([], None)
    assert object_patches(images, [1], STILL, 4).tolist() == [[False] * 4]


# Subsets


def test_subsets_have_the_masks_of_the_set():
    images = masked([np.full((8, 8), number) for number in range(20)], [0, 1] * 10)
    part = Subset(Subset(images, range(10, 20)), [3, 0])
    assert part.masked().tolist() == [0, 1]
    assert [int(part.mask(index)[0, 0]) for index in (0, 1)] == [13, 10]
    kept, held = hold_out(images, 0.3, 0)
    for half in (kept, held):
        assert [int(half.mask(index)[7, 7]) for index in range(len(half))] == half.indices.tolist()


# Pascal VOC


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC2012 in its distributed layout, reduced to four images; the first and the third have masks."""
    for name in ("JPEGImages", "SegmentationObject", "Annotations"):
        (tmp_path / name).mkdir()
    for number in range(4):
        Image.new("RGB", (12, 8), (60 * number, 0, 0)).save(tmp_path / "JPEGImages" / f"2007_00000{number}.jpg")
    (tmp_path / "SegmentationObject" / "readme.txt").write_text("no mask")
    for number in (0, 2):
        numbers_HW = np.zeros((8, 12), np.uint8)
        numbers_HW[:, 2:6] = number + 1
        numbers_HW[:, 6] = VOID
        mask = Image.fromarray(numbers_HW, "P")
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [224, 224, 192] * 252)
        mask.save(tmp_path / "SegmentationObject" / f"2007_00000{number}.png")
    return tmp_path


def in_voc(folder: Path) -> FileImages:
    return image_folders(str(folder / "JPEGImages"), masks=str(folder / "SegmentationObject")).train


def test_pascal_voc(voc):
    images = in_voc(voc)
    assert len(images) == 4  # images without a mask are included
    assert images.masked().tolist() == [0, 2]
    assert [images.mask(index) is None for index in range(4)] == [False, True, False, True]
    found_HW = images.mask(2)
    assert (found_HW.dtype, found_HW.shape) == (np.uint8, (8, 12))
    assert (found_HW == [0, 0, 3, 3, 3, 3, 255, 0, 0, 0, 0, 0]).all()
    # Of the central 8 columns, 2 to 9: object 2 to 5, void 6.
    assert object_patches(images, [0, 1, 2], STILL, 4).int().tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0]]
    assert Subset(images, [3, 2, 1]).masked().tolist() == [1]


def test_the_whole_command_reads_pascal_voc(voc, monkeypatch):
    monkeypatch.chdir(voc)
    options = ("data=folder", "data.root=JPEGImages", "data.image_size=8", "data.patch_size=4", "tracking=none")
    small = ("trainer.batch_size=2", "evaluators=[pictures]")
    assert composed(*options).data.source.masks is None
    checked = check_sweep([[*options, *small, "data.source.masks=SegmentationObject"]])
    assert checked.problems == []
    (problem,) = check_sweep([[*options, *small, "data.source.masks=SegmentationClass"]]).problems
    assert problem == (
        "data.source.masks=SegmentationClass is not a folder: set it to the folder that holds the masks, or null"
    )


@pytest.mark.parametrize("parts", [("train", "val"), ("val",)])
def test_masks_in_the_layout_of_imagenet(tmp_path, parts):
    for part, grey in (("train", 1), ("val", 2)):
        for kind in ("cat", "dog"):
            for below in (tmp_path / "images", tmp_path / "masks")[: 1 + (part in parts)]:
                (below / part / kind).mkdir(parents=True)
                Image.new("L", (8, 8), grey).save(below / part / kind / "a.png")
    splits = image_folders(str(tmp_path / "images"), masks=str(tmp_path / "masks"))
    assert splits.val.masked().tolist() == [0, 1]
    assert (splits.val.mask(1) == 2).all()
    assert splits.train.masked().tolist() == ([0, 1] if "train" in parts else [])
    assert splits.train.mask(0) is None or (splits.train.mask(0) == 1).all()


def test_held_out_images_of_folders_have_their_masks(tmp_path):
    for kind in ("cat", "dog"):
        for number in range(4):
            for below in ("images", "masks"):
                (tmp_path / below / kind).mkdir(parents=True, exist_ok=True)
                name = f"{number}.jpg" if below == "images" else f"{number}.png"
                Image.new("L", (8, 8), 50 * number + 1).save(tmp_path / below / kind / name)
    splits = image_folders(str(tmp_path / "images"), masks=str(tmp_path / "masks"))
    held = image_data(splits, val_fraction=0.5).splits.val
    assert held.masked().tolist() == [0, 1, 2, 3]
    assert [int(held.mask(i)[0, 0]) for i in range(4)] == [50 * int(Path(held.name(i)).stem) + 1 for i in range(4)]


# Mistakes


def test_a_folder_without_masks_of_the_images(voc):
    with pytest.raises(UserError, match=rf"data\.source\.masks={voc}/none is not a folder"):
        image_folders(str(voc / "JPEGImages"), masks=str(voc / "none"))
    expected = r"Annotations holds no mask of any image: that of \S+/JPEGImages/2007_000000\.jpg, for one, would be "
    with pytest.raises(UserError, match=rf"data\.source\.masks=\S+{expected}{voc}/Annotations/2007_000000\.png"):
        image_folders(str(voc / "JPEGImages"), masks=str(voc / "Annotations"))


def test_an_invalid_mask_is_named(voc):
    images, file = in_voc(voc), voc / "SegmentationObject" / "2007_000000.png"
    Image.new("L", (8, 12)).save(file)
    with pytest.raises(UserError, match=rf"mask '{file}' has 8x12 pixels and its image 12x8"):
        images.mask(0)
    Image.new("RGB", (12, 8)).save(file)
    with pytest.raises(UserError, match=rf"mask '{file}' is an image of mode RGB: a mask has one 8-bit value"):
        images.mask(0)
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"mask '{file}' cannot be read \(UnidentifiedImageError: cannot identify"):
        object_patches(images, [2, 0], STILL, 4)
    Image.new("1", (12, 8), 1).save(file)
    assert (images.mask(0) == 1).all()
