"""Photos, the shards of them, and log messages of reading data."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from semaim.data.shard_command import shard
from support.photos import photos
from support.sharded import SIZE


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log messages."""
    caplog.set_level(logging.INFO, "semaim")
    return caplog


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in train/ and val/, 31 and 7 of the last class and 30 and 6 of the others; one turned by EXIF."""
    root = tmp_path_factory.mktemp("my photos")
    photos(root / "train")
    photos(root / "val", of_each=6)
    turned = Image.Exif()
    turned[0x0112] = 6
    first = root / "train" / "Äpfel vom Markt" / "Bild 00 (Größe 1).jpg"
    Image.open(first).save(first.with_name("a.b, c.JPEG"), exif=turned)
    return root


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their shards, which no test changes."""
    out = tmp_path_factory.mktemp("shards") / "of photos"
    said = shard([f"data.root={root}", f"out={out}", SIZE])
    count = len(list(out.glob("*.tar")))
    assert said.startswith(f"92 training and 19 held-out images in {count} shards, ")
    assert said.splitlines()[1].startswith("to use them: ")
    assert said.endswith(f"""run data=folder 'data.root="{out}"'""")
    return out
