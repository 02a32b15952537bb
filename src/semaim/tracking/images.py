"""A picture that changes with training, as MLflow's charts of images want it.

MLflow keeps such pictures as artifacts whose names say what they show and when: beside each one a small copy, which the
charts show. Its own `log_image` gives every file another random name, so that a picture sent twice stands there twice;
here the name follows from the journal's line alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

PLACE = "images"  # among the artifacts of a run
TAG = "mlflow.loggedImages"  # without it the page of a run has no charts of images
SMALL = (1000, 1000)  # pixels at most; MLflow itself takes 256, in which many panels are not to be told apart


@contextmanager
def files_for_mlflow(file: Path, key: str, step: int, time: int) -> Iterator[Path]:
    """A temporary folder with the two files that are to be in PLACE.

    Args:
        file: a PNG.
        key: what it shows; pictures of one key are steps of one chart.
        step: of training.
        time: in milliseconds since 1970.
    """
    name = f"{key.replace('/', '~')}+step+{step}+timestamp+{time}+journal"
    with TemporaryDirectory() as temporary:
        shutil.copyfile(file, Path(temporary, f"{name}.png"))
        with Image.open(file) as image:
            small = image.convert("RGB")
        small.thumbnail(SMALL)
        small.save(Path(temporary, f"{name}+compressed.webp"))
        yield Path(temporary)
