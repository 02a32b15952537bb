"""A folder of photographs as people have them: small generated pictures in files of several kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = {"Äpfel vom Markt": "ellipse", "Türen & Tore": "rectangle", "Blätter, im Wald": "chord"}
BROKEN = "nicht fertig.jpg"


def photo(shape: str, seed: int) -> Image.Image:
    """A coloured shape on a blotched grey background."""
    random = np.random.default_rng(seed)
    width, height = (int(side) for side in random.integers(60, 100, 2))
    blotches = Image.fromarray(random.integers(60, 190, (5, 5), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    picture = blotches.convert("RGB")
    left, top = (int(random.integers(5, side // 3)) for side in (width, height))
    box = (left, top, left + width // 2, top + height // 2)
    colour = tuple(int(level) for level in random.integers(0, 256, 3))
    more = (30, 210) if shape == "chord" else ()
    getattr(ImageDraw.Draw(picture), shape)(box, *more, fill=colour)
    return picture


def photos(root: Path, of_each: int = 30) -> Path:
    """Write a folder of photographs: JPEG, PNG with alpha, spaces and umlauts in names, and one file cut short.

    Args:
        root: folder to make.
        of_each: photographs of each class; there is a sub-folder for each.
    """
    for number, (name, shape) in enumerate(CLASSES.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(of_each):
            picture = photo(shape, 100 * number + index)
            if index % 5 == 4:
                picture.putalpha(Image.linear_gradient("L").resize(picture.size))
                picture.save(folder / f"Bild {index:02} (Größe 1).png")
            else:
                picture.save(folder / f"Bild {index:02} (Größe 1).jpg", quality=90)
    whole = (root / name / "Bild 00 (Größe 1).jpg").read_bytes()
    (root / name / BROKEN).write_bytes(whole[: len(whole) // 3])
    return root
