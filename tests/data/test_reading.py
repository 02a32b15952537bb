"""Pictures of every depth and kind are read with their true values, in numbers."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from semaim.config.run_spec import compose_run_spec
from semaim.data.image_sets import FileImages, read_image
from semaim.data.reading import Unreadable, read_rgb, to_rgb
from semaim.data.sources import image_files, image_folders
from semaim.data.transforms import evaluation
from semaim.errors import UserError


def read(path, exif=False):
    image = read_rgb(path, exif)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(path):
    """Values (height, width) of a picture whose channels are equal."""
    array = read(path)
    assert (array == array[..., :1]).all()
    return array[..., 0].tolist()


def png(path, depth, colour_type, samples, transparent=None, width=None):
    """Write a PNG of one row; Pillow writes neither 16 bits in colour nor 2 bits in grey."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(b"\0" + samples)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# Depths


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    values = np.array([[0, 128, 129, 257, 25700, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert grey(tmp_path / name) == [[0, 0, 1, 1, 100, 254, 255, 255]]  # value / 257, rounded
    assert grey(tmp_path / name) == np.rint(values / 257).astype(int).tolist()


def test_big_endian_and_inverted_sixteen_bits(tmp_path):
    big = np.array([[0, 25700, 65535]], ">u2")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    tags = [(256, 3, 3), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 0), (278, 3, 1), (279, 4, 6)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + struct.pack(">HH" if kind == 3 else ">I", *([v, 0] if kind == 3 else [v]))
        for tag, kind, v in [(t, k, start if t == 273 else v) for t, k, v in tags]
    )
    (tmp_path / "big.tif").write_bytes(header + struct.pack(">H", len(tags)) + entries + bytes(4) + big.tobytes())
    with Image.open(tmp_path / "big.tif") as image:
        assert image.mode == "I;16B"
    assert grey(tmp_path / "big.tif") == [[0, 100, 255]]
    Image.fromarray(big.astype(np.uint16)).save(tmp_path / "inverted.tif", tiffinfo={262: 0})  # white is zero
    assert grey(tmp_path / "inverted.tif") == [[255, 155, 0]]


def test_twelve_bits(tmp_path):
    """A grey TIFF of 12 bits is white at 4095."""
    Image.fromarray(np.array([[0, 0]], np.uint16)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        tags = dict(image.tag_v2)
    data = bytes([0xFF, 0xF8, 0x00])  # 4095 and 2048
    tags |= {258: 12, 273: 0, 279: len(data)}
    kinds = {256: 4, 257: 4, 258: 3, 259: 3, 262: 3, 273: 4, 277: 3, 278: 4, 279: 4}
    start = 8 + 2 + 12 * len(kinds) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, start if tag == 273 else int(np.atleast_1d(tags.get(tag, 1))[0]))
        for tag, kind in kinds.items()
    )
    whole = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(kinds)) + entries + bytes(4) + data
    (tmp_path / "a.tif").write_bytes(whole)
    assert grey(tmp_path / "a.tif") == [[255, 128]]


def test_other_depths_of_grey_and_colour(tmp_path):
    (tmp_path / "ten.pgm").write_bytes(b"P2 3 1 1023 0 512 1023\n")
    assert grey(tmp_path / "ten.pgm") == [[0, 128, 255]]
    (tmp_path / "wide.ppm").write_bytes(b"P6 1 1 65535\n" + struct.pack(">3H", 0, 25700, 65535))
    assert read(tmp_path / "wide.ppm").tolist() == [[[0, 100, 255]]]
    png(tmp_path / "wide.png", 16, 2, struct.pack(">3H", 0, 25700, 65535), width=1)
    assert read(tmp_path / "wide.png").tolist() == [[[0, 100, 255]]]
    png(tmp_path / "two.png", 2, 0, bytes([0b00011011]), width=4)
    assert grey(tmp_path / "two.png") == [[0, 85, 170, 255]]
    png(tmp_path / "one.png", 1, 0, bytes([0b10100000]), width=3)
    assert grey(tmp_path / "one.png") == [[255, 0, 255]]


@pytest.mark.parametrize(
    ("dtype", "signed", "kind"),
    [
        (np.int32, True, "signed integers"),
        (np.float32, False, "floating-point numbers"),
        (np.uint16, True, "signed integers"),
        (np.uint8, True, "signed integers"),
    ],
)
def test_pixels_without_a_known_white_are_refused_by_name(tmp_path, dtype, signed, kind):
    values = np.array([[0, 1], [200, 5]], dtype)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={339: 2} if signed else {})
    with pytest.raises(UserError, match=f"its pixels are {kind}, and none of them is known to be white"):
        read(tmp_path / "a.tif")


def test_uncompressed_wide_channels_one_after_another_are_refused(tmp_path):
    """Pillow takes their bytes for pixels."""
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / "grey.tif")
    with Image.open(tmp_path / "grey.tif") as image:
        tags = dict(image.tag_v2)
    whole = (tmp_path / "grey.tif").read_bytes()
    ifd = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    same = {name: tags[name] * 3 for name in (273, 279)}  # the place of the values, for each channel
    for tag, value in (tags | {258: (16,) * 3, 262: 2, 277: 3, 284: 2} | same).items():
        ifd[tag] = value
    (tmp_path / "a.tif").write_bytes(whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + ifd.tobytes(len(whole)))
    with pytest.raises(UserError, match="its 16-bit channels are stored one after another: save it compressed"):
        read(tmp_path / "a.tif")


# Transparency, on white


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_composited_on_white(tmp_path, name):
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [100, 0, 50, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert read(tmp_path / name).tolist() == [[[200, 0, 0], [255, 255, 255], [224, 204, 214]]]  # 255 - 51/255 * ...


def test_grey_and_palette_with_transparency(tmp_path):
    Image.fromarray(np.array([[[100, 255], [100, 0], [0, 51]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert grey(tmp_path / "la.png") == [[100, 255, 204]]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "one.png", transparency=1)
    palette.save(tmp_path / "one.gif", transparency=1)
    for name in ("one.png", "one.gif"):
        assert read(tmp_path / name).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    palette.save(tmp_path / "all.png", transparency=bytes([255, 0, 51]))
    assert read(tmp_path / "all.png").tolist() == [[[10, 20, 30], [255, 255, 255], [218, 220, 222]]]
    two = palette.convert("PA")
    two.putalpha(0)
    assert np.asarray(to_rgb(two)).tolist() == [[[255, 255, 255]] * 3]


def test_the_transparent_colour_of_a_png_has_the_depth_of_the_file(tmp_path):
    def one(name, *args, **more):
        return read(png(tmp_path / name, *args, **more))[0].tolist()

    assert one("1.png", 1, 0, bytes([0b10000000]), [0], 2) == [[255] * 3, [255] * 3]
    assert one("2.png", 2, 0, bytes([0b00010000]), [1], 2) == [[0] * 3, [255] * 3]
    assert one("4.png", 4, 0, bytes([0x7F]), [7], 2) == [[255] * 3, [255] * 3]
    assert one("16.png", 16, 0, struct.pack(">3H", 25700, 25701, 0), [25700], 3) == [[255] * 3, [100] * 3, [0] * 3]
    wide = struct.pack(">6H", 300, 600, 900, 25700, 0, 65535)
    assert one("rgb.png", 16, 2, wide, [300, 600, 900], 2) == [[255] * 3, [100, 0, 255]]
    assert one("rgb8.png", 8, 2, bytes([1, 2, 3, 4, 5, 6]), [1, 2, 3], 2) == [[255] * 3, [4, 5, 6]]


def test_other_colour_spaces(tmp_path):
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").tolist() == [[[255, 0, 0]]]
    assert np.asarray(to_rgb(Image.new("RGBa", (1, 1), (0, 0, 0, 0)))).tolist() == [[[255, 255, 255]]]
    assert np.asarray(to_rgb(Image.new("RGBa", (1, 1), (51, 0, 0, 51)))).tolist() == [[[255, 204, 204]]]
    assert np.asarray(to_rgb(Image.new("HSV", (1, 1), (85, 255, 255)))).tolist() == [[[0, 255, 0]]]
    Image.fromarray(np.array([[[138, 81, 70]]], np.uint8), "LAB").save(tmp_path / "lab.tif")
    assert np.abs(read(tmp_path / "lab.tif").astype(int) - [255, 0, 0]).max() <= 6  # red, in whole steps of L, a and b
    ycbcr = np.asarray(to_rgb(Image.new("YCbCr", (1, 1), (76, 85, 255))))
    assert np.abs(ycbcr.astype(int) - [255, 0, 0]).max() <= 1


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_or_page_is_read(tmp_path, name):
    frames = [Image.new("RGB", (2, 2), (value, value, value)) for value in (60, 200, 90)]
    lossless = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
    assert (read(tmp_path / name) == 60).all()


@pytest.mark.parametrize("kinds", [(1, 0), (1, 1), (0, 1)])
def test_a_thumbnail_is_not_the_picture(tmp_path, kinds):
    """Scanners and cameras store one before the picture."""
    pages = [Image.new("L", (side, side), side) for side in (3, 5)]
    for page, kind in zip(pages, kinds, strict=True):
        page.encoderinfo = {"tiffinfo": {254: kind}}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], tiffinfo={254: kinds[0]})
    side = 5 if kinds == (1, 0) else 3
    assert grey(tmp_path / "a.tif") == [[side] * side] * side


# EXIF orientation

STORED = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
SHOWN = {1: STORED, 3: STORED[::-1, ::-1], 6: np.rot90(STORED, -1), 8: np.rot90(STORED), 2: STORED[:, ::-1]}


def oriented(path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(STORED).save(path, exif=exif)


@pytest.mark.parametrize("orientation", SHOWN)
def test_orientation(tmp_path, orientation):
    oriented(tmp_path / "a.png", orientation)
    assert read(tmp_path / "a.png")[..., 0].tolist() == STORED.tolist()
    assert read(tmp_path / "a.png", exif=True)[..., 0].tolist() == SHOWN[orientation].tolist()


def test_orientation_is_an_option_of_folders(tmp_path):
    oriented(tmp_path / "a.png", 6)
    stored, shown = (image_folders(str(tmp_path), exif=exif).train for exif in (False, True))
    assert (stored.read(0).size, shown.read(0).size) == ((3, 2), (2, 3))
    assert stored.fingerprint() != shown.fingerprint()  # of the feature cache
    assert image_files([str(tmp_path)]).read(0).size == (2, 3)


@pytest.mark.parametrize(("data", "exif"), [("folder", True), ("imagenet", False)])
def test_the_default_of_the_orientation(data, exif):
    assert compose_run_spec([f"data={data}", "data.root=/photos"]).config["data"]["source"]["exif"] is exif


def test_a_mask_has_the_size_of_the_image_as_it_is_shown(tmp_path):
    oriented(tmp_path / "a.jpg", 6)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.rot90(STORED, -1)).save(tmp_path / "masks" / "a.png")
    turned = FileImages(tmp_path, ["a.jpg"], None, tmp_path / "masks", exif=True)
    assert turned.mask(0).tolist() == np.rot90(STORED, -1).tolist()
    with pytest.raises(UserError, match=r"has 2x3 pixels and its image 3x2.*data\.source\.exif"):
        FileImages(tmp_path, ["a.jpg"], None, tmp_path / "masks").mask(0)


def test_a_damaged_orientation_is_said(tmp_path):
    broken = io.BytesIO()
    Image.fromarray(STORED).save(broken, "WEBP", exif=b"Exif\0\0nonsense here")
    (tmp_path / "a.webp").write_bytes(broken.getvalue())
    assert read(tmp_path / "a.webp").shape == (2, 3, 3)
    images = FileImages(tmp_path, ["a.webp"], None, exif=True)
    with pytest.raises(Unreadable, match=r"EXIF orientation is damaged.*data\.source\.exif=false reads it as stored"):
        read_image(images, 0)


def test_what_the_network_sees(tmp_path):
    """From the file to the normalised tensor, as evaluations read it."""
    Image.fromarray(np.full((8, 8), 25700, np.uint16)).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "b.png")
    images = image_folders(str(tmp_path)).train
    transform = evaluation(8, 1.0, mean=(0, 0, 0), std=(1, 1, 1))
    assert [(transform(images.read(i)) * 255).unique().tolist() for i in (0, 1)] == [[pytest.approx(100)], [255]]
