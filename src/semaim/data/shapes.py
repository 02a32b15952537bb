"""A generated data set: coloured, textured shapes on textured backgrounds, with the exact mask of every shape.

It measures in minutes, and without downloads, whether an order of patches starts on the object. Only the shape
determines the class: position, size, rotation, colours and textures have the same distribution for every class, and
colours and textures have the same distribution for shape and background, so they reveal neither class nor position.

Shapes: S x S pixels of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from semaim.core.seeding import derive_seed
from semaim.data.image_sets import ArrayImages, Splits
from semaim.errors import UserError

Array = np.ndarray[Any, Any]
# Textures are faint and lightness has two values: if images differed more in colour or texture, the features of a small
# encoder would be dominated by colour, not shape, and a short pretraining does not change that.
AREA = (0.1, 0.35)  # share of the image covered by a shape
MAX_ANGLE = np.pi / 18  # of rotation, in both directions
LIGHTNESS = (0.2, 0.8)  # of shape and background, or of background and shape
TEXTURE = (0.04, 0.16)  # distance between the two colours of a texture, in units of full red, green or blue
STEP = 0.02  # grid spacing for measuring shapes
NOISE = 0.02  # standard deviation of the pixel noise


def _star(u: Array, v: Array) -> Array:
    """Five-pointed star: its edges are straight lines from a point (radius 1) to a notch (radius 0.45)."""
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)  # from the nearest point: 0 to sector / 2
    notch_u, notch_v = 0.45 * np.cos(sector / 2), 0.45 * np.sin(sector / 2)
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    return (x - 1) * notch_v <= y * (notch_u - 1)


# Whether a point, u to the right of the centre and v below it, is inside the shape, which fits into [-1, 1] x [-1, 1].
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: np.hypot(u, v) <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 1,
    "triangle": lambda u, v: np.maximum(3**0.5 * abs(u) - v, 2 * v) <= 1,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.75) <= 0.25,
    "star": _star,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 1),
    "crescent": lambda u, v: (np.hypot(u, v) <= 1) & (np.hypot(u - 0.5, v) > 0.75),
    "bar": lambda u, v: (abs(u) <= 1) & (abs(v) <= 0.4),
    "angle": lambda u, v: (np.maximum(abs(u), abs(v)) <= 1) & (np.minimum(u, v) <= -0.4),
    "hourglass": lambda u, v: (abs(v) <= 1) & (abs(u) <= abs(v)),
}


@cache
def _points(shape: str) -> Array:
    """Points of a fine grid inside a shape: (n, 2)."""
    u, v = np.meshgrid(*[np.arange(-1, 1, STEP) + STEP / 2] * 2)
    inside = SHAPES[shape](u, v)
    return np.stack([u[inside], v[inside]], 1)


def shape_mask(shape: str, side: int, rng: np.random.Generator) -> Array:
    """A shape of random size, angle and position, completely inside an image: bool (S, S)."""
    points, angle = _points(shape), rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    area = np.exp(rng.uniform(*np.log(AREA)))
    across, down = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ points.T
    first, last = np.array([[down.min(), across.min()], [down.max(), across.max()]])
    unit = side * min(np.sqrt(area / (len(points) * STEP**2)), 1 / (last - first).max())  # pixels
    x, y = _rotated(-first * unit + rng.random(2) * (side - (last - first) * unit), angle, side)
    return SHAPES[shape](x / unit, y / unit)


def _rotated(centre: Array, angle: float, side: int) -> tuple[Array, Array]:
    """Pixel coordinates (x, y), (S, S) each, relative to a point and rotated by an angle."""
    rows, columns = np.mgrid[:side, :side] + 0.5 - centre[:, None, None]
    return np.cos(angle) * columns + np.sin(angle) * rows, np.cos(angle) * rows - np.sin(angle) * columns


# Textures: weight, 0 to 1, of one of two colours at the points (x, y), which are pixels of a rotated image.
def _stripes(x: Array, _: Array, rng: np.random.Generator) -> Array:
    return (x / rng.uniform(5, 7) + rng.uniform()) % 1 < 0.5


def _checks(x: Array, y: Array, rng: np.random.Generator) -> Array:
    size, start = rng.uniform(2.5, 5), rng.uniform(0, 2, 2)
    return (np.floor(x / size + start[0]) + np.floor(y / size + start[1])) % 2


def _gradient(x: Array, _: Array, __: np.random.Generator) -> Array:
    return (x - x.min()) / (x.max() - x.min())


def _grain(x: Array, _: Array, rng: np.random.Generator) -> Array:
    return rng.random((len(x), len(x)))


TEXTURES = (_stripes, _checks, _gradient, _grain)


def _textured(lightness: float, side: int, rng: np.random.Generator) -> Array:
    """An image (S, S, 3) of a random texture in two random colours; their mean is grey of the given lightness."""
    x, y = _rotated(np.full(2, side / 2), rng.integers(8) * np.pi / 4, side)
    texture = TEXTURES[rng.integers(len(TEXTURES))](x, y, rng)
    difference = rng.normal(size=3)
    difference *= rng.uniform(*TEXTURE) / np.linalg.norm(difference)
    return lightness + (np.asarray(texture, float)[..., None] - 0.5) * difference


def shape_image(shape: str, side: int, seed: int) -> tuple[Array, Array]:
    """An image of a shape, uint8 (S, S, 3), and its mask, uint8 (S, S): 1 inside, 0 outside."""
    rng = np.random.default_rng(seed)
    mask = shape_mask(shape, side, rng)
    background, foreground = (_textured(lightness, side, rng) for lightness in rng.permutation(LIGHTNESS))
    image = np.where(mask[..., None], foreground, background) + rng.normal(0, NOISE, (side, side, 3))
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask.astype(np.uint8)


def shapes(side: int, train: int, val: int, seed: int) -> Splits:
    """Images of ten shapes (the classes), in alternating order. An image depends on seed, split and index alone.

    Args:
        side: pixels per side.
        train: number of training images.
        val: number of held-out images.
        seed: seed of all random choices.

    Raises:
        UserError: if the images are too small, or there are fewer images than classes.
    """
    if side < 16:
        raise UserError(f"data.source.side={side}: shapes need at least 16 pixels to be distinguishable")
    for option, count in (("train", train), ("val", val)):
        if count < len(SHAPES):
            raise UserError(f"data.source.{option}={count}: there must be an image of each of {len(SHAPES)} shapes")
    train_set, val_set = (_part(part, count, side, seed) for part, count in (("train", train), ("val", val)))
    return Splits(train_set, train_set, val_set, list(SHAPES))


def _part(part: str, count: int, side: int, seed: int) -> ArrayImages:
    names = list(SHAPES)
    labels = [index % len(names) for index in range(count)]
    pairs = [shape_image(names[label], side, derive_seed(seed, f"shapes/{part}", i)) for i, label in enumerate(labels)]
    return ArrayImages(
        np.stack([image for image, _ in pairs]), labels, f"shapes/{part}", np.stack([mask for _, mask in pairs])
    )
