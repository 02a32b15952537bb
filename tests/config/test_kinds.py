"""Kinds of texts: names, paths, and notations of other libraries."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from timm.data import create_transform

from semaim.config.kinds import FOLDER_NAME, PATH, TEXT, Kind
from semaim.config.schema import RAND_AUGMENT


@pytest.mark.parametrize(("kind", "good", "bad"), [
    (FOLDER_NAME, ["a", "..a", "a b", ".a", "ä=1"], ["", ".", "..", "...", "a/b", "a\nb", " ", "x" * 201]),
    (PATH, ["a", "/", "~/x", "a b", "a\nb", "\udcff"], ["", " ", "\n", "a\0b"]),
    (TEXT, ["a", "é"], ["", "\t", "a\tb"]),
])  # fmt: skip
def test_texts(kind: Kind, good: list[str], bad: list[str]) -> None:
    assert [each for each in good if not kind.accepts(each)] == []
    assert [each for each in bad if kind.accepts(each)] == []


@pytest.mark.parametrize(("given", "right"), [
    ("rand-m9-mstd0.5-inc1", True), ("rand-m9-n3-p0.5-tinc", True), ("augmix-m5-w4-d2", True), ("v0-mstd0.5", True),
    ("rand-z9", False), ("randy", False), ("original-m9", False),
])  # fmt: skip
def test_rand_augment(given: str, right: bool) -> None:
    """As timm takes it."""
    assert RAND_AUGMENT.accepts(given) == right
    with nullcontext() if right else pytest.raises((AssertionError, ValueError)):
        create_transform(32, is_training=True, auto_augment=given)
