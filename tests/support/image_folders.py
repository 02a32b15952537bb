"""Folders of empty files, and what is found in them and said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.data.image_sets import FileImages, ImageSet


def make(root: Path, *files: str) -> str:
    """Empty files below a folder, of which only the names matter; returns the folder."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return str(root)


def files(images: ImageSet | None) -> list[str]:
    assert isinstance(images, FileImages)
    return [str(file) for file in images.files]


def labelled(images: ImageSet | None) -> list[tuple[str, int]]:
    assert images is not None
    return list(zip(files(images), map(images.label, range(len(images))), strict=True))


def omitted(said: pytest.LogCaptureFixture, message: int = -1) -> list[str]:
    """What a message says to be left out."""
    return sorted(said.messages[message].partition("; left out: ")[2].split(", "))
