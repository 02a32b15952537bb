"""Images over training steps, in the layout of MLflow's image charts.

MLflow stores such images as artifacts whose names contain key, step and time, each with a thumbnail for the charts. Its
own `log_image` adds a random part to the name, so that an image sent twice appears twice; here the name depends only on
the journal line.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from semaim.errors import DamagedFile

ARTIFACT_FOLDER = "images"  # among the artifacts of a run
TAG = "mlflow.loggedImages"  # required for image charts on the page of a run
MAX_THUMBNAIL_SIZE = (1000, 1000)  # pixels; MLflow's own 256 are too few for figures with many panels


@contextmanager
def files_for_mlflow(file: Path, key: str, step: int, time: int) -> Iterator[Path]:
    """A temporary folder with the image and its thumbnail, named for ARTIFACT_FOLDER.

    Args:
        file: a PNG.
        key: name of the chart; images with the same key are its steps.
        step: of training.
        time: in milliseconds since 1970.

    Raises:
        DamagedFile: if it cannot be read.
    """
    name = f"{key.replace('/', '~')}+step+{step:d}+timestamp+{time:d}+journal"
    with TemporaryDirectory() as temporary:
        shutil.copyfile(file, Path(temporary, f"{name}.png"))
        try:
            with Image.open(file) as image:
                thumbnail = image.convert("RGB")
        except Exception as error:  # Pillow raises many types
            raise DamagedFile(file, str(error), "it is not sent to MLflow") from error
        thumbnail.thumbnail(MAX_THUMBNAIL_SIZE)
        thumbnail.save(Path(temporary, f"{name}+compressed.webp"))
        yield Path(temporary)
