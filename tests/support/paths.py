"""Paths of files that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"  # on the import path: `support` is imported from there
GOLDEN_FILES = sorted((TESTS / "golden").glob("*.npz"))
GOLDEN_PIXELS = TESTS / "golden" / "pixels_mlp_l2_norm.npz"
