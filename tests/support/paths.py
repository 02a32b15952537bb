"""Where the files that tests read lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"  # on the path of imports: `support` is imported from there
GOLDEN_FILES = sorted((TESTS / "golden").glob("*.npz"))
GOLDEN_PIXELS = TESTS / "golden" / "pixels_mlp_l2_norm.npz"
