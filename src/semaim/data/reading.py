"""Reading of picture files: every picture becomes 8-bit RGB with the values that a viewer shows (docs/data.md)."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION, SAMPLEFORMAT
from torch import Tensor

from semaim.data.pixels import Picture
from semaim.errors import UserError

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision has announced that it will leave decoding to others: Pillow then reads JPEG, too
    decode_jpeg = None

log = logging.getLogger(__name__)
BACKGROUND = "white"  # pictures with transparency are mostly made for pages, which are white
PNG_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}  # from a PNG's samples to Pillow's, which have 8 bits
WIDE_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
START_OF_JPEG = b"\xff\xd8"
TURNS: dict[Any, Callable[[Tensor], Tensor]] = {  # pixels (3, H, W) as shown, by EXIF orientation
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.rot90(-1, (1, 2)),
    7: lambda pixels: pixels.flip(1, 2).transpose(1, 2),
    8: lambda pixels: pixels.rot90(1, (1, 2)),
}
SUBFILE_TYPE, REDUCED = 254, 1  # a TIFF's tag, and its bit for thumbnails


class Unreadable(Exception):
    """A picture that cannot be read, for the reason that is its message, one line."""


def log_unreadable(name: str, why: str, told: set[str]) -> None:
    """Warn of a picture that is skipped, unless its name is among those already told, to which it is added."""
    if name not in told:
        told.add(name)
        log.warning("unreadable image %d, skipped: %r (%s)", len(told), name, why)


def reason(error: Exception) -> str:
    """Why a picture cannot be read, as one line."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def read_rgb(file: str | Path | bytes, exif: bool) -> Picture:
    """Read a picture in RGB; of an animation or a file of several pages, the first that is no thumbnail.

    Args:
        file: path of the picture, or its bytes.
        exif: turn it as its EXIF orientation says.

    Returns:
        of a JPEG its pixels, else a PIL image.

    Raises:
        UserError: as `to_rgb`, or for a damaged EXIF orientation. Pillow raises any exception for damaged files.
    """
    if isinstance(file, bytes):
        data = file if file.startswith(START_OF_JPEG) else None
    else:
        with open(file, "rb") as stream:
            data = stream.read() if stream.peek(2)[:2] == START_OF_JPEG else None
    pixels = None if data is None else jpeg_pixels(data, exif)
    if pixels is not None:
        return pixels
    return by_pillow(io.BytesIO(file) if isinstance(file, bytes) else file, exif)


def jpeg_pixels(data: bytes, exif: bool) -> Tensor | None:
    """Pixels, uint8 (3, H, W), of a grey or RGB picture in JPEG; torchvision decodes faster than Pillow, to pixels.

    None if Pillow has to read it, or to say what is wrong with it: whatever Pillow refuses, torchvision refuses too.
    """
    if decode_jpeg is None:
        return None
    try:
        header = Image.open(io.BytesIO(data), formats=["JPEG"])  # nothing is decoded here
        if header.mode not in ("L", "RGB"):
            return None
        turn = TURNS.get(header.getexif().get(ExifTags.Base.Orientation)) if exif else None
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except Exception:  # Pillow's parsers raise various types
        return None
    return pixels if turn is None else turn(pixels)


def by_pillow(file: str | Path | io.BytesIO, exif: bool) -> Image.Image:
    """As `read_rgb`, for any format."""
    try:
        opened = Image.open(file)
    except UnidentifiedImageError as error:
        if isinstance(file, io.BytesIO):  # whose address the error would tell
            raise UnidentifiedImageError("cannot identify the kind of picture") from error
        raise
    with opened as image:
        if image.format == "TIFF":
            _to_full_page(image)
        _scale_transparent_colour(image)
        image.load()
        if exif:
            try:
                ImageOps.exif_transpose(image, in_place=True)
            except Exception as error:  # Pillow's parser raises various types
                raise UserError(
                    f"its EXIF orientation is damaged ({error}); data.source.exif=false reads it as stored"
                ) from error
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB: 16-bit grey scaled to 8 bits, transparency shown on BACKGROUND.

    Raises:
        UserError: for pixels of which none is known to be white.
    """
    if image.mode in WIDE_GREY or (image.mode == "I" and image.format in ("PPM", "PNG")):  # of 16 bits, too
        return _from_wide_grey(image)
    signed = getattr(image, "tag_v2", {}).get(SAMPLEFORMAT, (1,))[0] == 2  # of a TIFF; Pillow takes -1 for 255
    if image.mode in ("I", "F") or signed:
        kind = "floating-point numbers" if image.mode == "F" else "signed integers" if signed else "32-bit integers"
        raise UserError(f"its pixels are {kind}, and none of them is known to be white: save it with 16 bits, unsigned")
    if not image.has_transparency_data:
        return image.convert("RGB")
    visible = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(visible, mask=visible)
    return canvas


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """16-bit grey, and TIFF's 12-bit grey, from black to white; Pillow's conversion cuts all values above 255."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    white = 2 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
    values_HW = np.asarray(image).astype(np.uint32)
    grey_HW = (values_HW * 255 + white // 2) // white  # of 16 bits: value / 257, rounded
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        grey_HW = 255 - grey_HW
    if "transparency" in image.info:
        grey_HW[values_HW == image.info["transparency"]] = 255
    return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")


def _to_full_page(image: Any) -> None:
    """Go to the first page of a TIFF that is no thumbnail.

    Raises:
        UserError: if Pillow would read wrong values: the bytes of 16-bit channels as pixels.
    """
    if image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED:
        for page in (*range(image.n_frames), 0):
            image.seek(page)
            if not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED:
                break
    tags = image.tag_v2
    if tags.get(PLANAR_CONFIGURATION) == 2 and tags[BITSPERSAMPLE][0] > 8 and image.tile[0][0] == "raw":
        raise UserError("its 16-bit channels are stored one after another: save it compressed, or pixel by pixel")


def _scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG like its pixels; Pillow leaves it with the depth of the file."""
    scale = PNG_SCALES.get(str(image.tile[0][3])) if image.format == "PNG" and image.tile else None
    colour = image.info.get("transparency")
    if scale and colour is not None:
        scaled = [int(value * scale) for value in np.atleast_1d(colour)]
        image.info["transparency"] = tuple(scaled) if len(scaled) > 1 else scaled[0]
