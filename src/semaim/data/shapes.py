"""A generated data set: coloured, textured shapes on textured backgrounds, with the exact mask of every shape.

It is there to measure whether an order of patches starts on the object, in minutes and with nothing to download. The
class is the shape alone: place, size, rotation, colours and textures are drawn alike for every class, and colours and
textures alike for shape and background, so none of them tells the class or where the object is.

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
# Textures are faint and lightness has two values: where images differ more in colour or texture, a small encoder finds
# those of like colours near each other, whatever the shape, and a short pretraining does not change that.
AREA = (0.1, 0.35)  # of the image that a shape covers
TURN = np.pi / 18  # at most, either way
LIGHTNESS = (0.2, 0.8)  # of shape and background, or of background and shape
TEXTURE = (0.04, 0.16)  # distance between the two colours of a texture, in units of full red, green or blue
STEP = 0.02  # between points at which shapes are measured
NOISE = 0.02  # deviation of each pixel's own noise


def _star(u: Array, v: Array) -> Array:
    """Five points: the radius at an angle is on the straight line from a point (1) to a notch (0.45)."""
    turn = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + turn / 2) % turn - turn / 2)  # from the nearest point: 0 to turn / 2
    notch_u, notch_v = 0.45 * np.cos(turn / 2), 0.45 * np.sin(turn / 2)
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    return (x - 1) * notch_v <= y * (notch_u - 1)


# Whether a point, u to the right of the middle and v below it, lies in the shape, which is no larger than from -1 to 1.
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
    """The points of a shape on a fine grid: (n, 2)."""
    u, v = np.meshgrid(*[np.arange(-1, 1, STEP) + STEP / 2] * 2)
    inside = SHAPES[shape](u, v)
    return np.stack([u[inside], v[inside]], 1)


def shape_mask(shape: str, side: int, rng: np.random.Generator) -> Array:
    """A shape of random size, angle and place, whole inside an image: bool (S, S)."""
    points, angle = _points(shape), rng.uniform(-TURN, TURN)
    area = np.exp(rng.uniform(*np.log(AREA)))
    across, down = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ points.T
    first, last = np.array([[down.min(), across.min()], [down.max(), across.max()]])
    unit = side * min(np.sqrt(area / (len(points) * STEP**2)), 1 / (last - first).max())  # pixels
    x, y = _turned(-first * unit + rng.random(2) * (side - (last - first) * unit), angle, side)
    return SHAPES[shape](x / unit, y / unit)


def _turned(middle: Array, angle: float, side: int) -> tuple[Array, Array]:
    """Where the pixels of an image lie, (S, S) each, seen from a point and turned by an angle."""
    rows, columns = np.mgrid[:side, :side] + 0.5 - middle[:, None, None]
    return np.cos(angle) * columns + np.sin(angle) * rows, np.cos(angle) * rows - np.sin(angle) * columns


# The strength, 0 to 1, of one of two colours at the points (x, y), which are pixels of a turned image.
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
    """A picture (S, S, 3) of a random texture in two random colours, of which the mean is grey of this lightness."""
    x, y = _turned(np.full(2, side / 2), rng.integers(8) * np.pi / 4, side)
    texture = TEXTURES[rng.integers(len(TEXTURES))](x, y, rng)
    difference = rng.normal(size=3)
    difference *= rng.uniform(*TEXTURE) / np.linalg.norm(difference)
    return lightness + (np.asarray(texture, float)[..., None] - 0.5) * difference


def shape_image(shape: str, side: int, seed: int) -> tuple[Array, Array]:
    """A picture of a shape, uint8 (S, S, 3), and the mask of the shape, uint8 (S, S): 1 inside, 0 outside."""
    rng = np.random.default_rng(seed)
    mask = shape_mask(shape, side, rng)
    background, foreground = (_textured(lightness, side, rng) for lightness in rng.permutation(LIGHTNESS))
    picture = np.where(mask[..., None], foreground, background) + rng.normal(0, NOISE, (side, side, 3))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), mask.astype(np.uint8)


def shapes(side: int, train: int, val: int, seed: int) -> Splits:
    """Pictures of ten shapes, the classes, in turn. An image depends on seed, split and its number alone.

    Args:
        side: pixels per side.
        train, val: images to train on, and held out.
        seed: decides everything.

    Raises:
        UserError: if the images are too small for shapes, or there are fewer than classes.
    """
    if side < 16:
        raise UserError(f"data.source.side={side}: shapes need at least 16 pixels to be told apart")
    for option, count in (("train", train), ("val", val)):
        if count < len(SHAPES):
            raise UserError(f"data.source.{option}={count}: there must be an image of each of {len(SHAPES)} shapes")
    train_set, val_set = (_part(part, count, side, seed) for part, count in (("train", train), ("val", val)))
    return Splits(train_set, train_set, val_set, list(SHAPES))


def _part(part: str, count: int, side: int, seed: int) -> ArrayImages:
    names = list(SHAPES)
    labels = [index % len(names) for index in range(count)]
    made = [shape_image(names[label], side, derive_seed(seed, f"shapes/{part}", i)) for i, label in enumerate(labels)]
    return ArrayImages(np.stack([p for p, _ in made]), labels, f"shapes/{part}", np.stack([m for _, m in made]))
