"""Timings of semaim: `python -m benchmarks --help`, from the root of the repository."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))  # a checkout that is not installed
