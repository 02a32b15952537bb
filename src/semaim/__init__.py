"""semaim: semantic-aware autoregressive image modelling (SemAIM, AAAI 2024).

The public API is `semaim.load_model` and the modules `permutations`, `semantics` and `targets`. They are imported on
first use, so that the command line can reject a misspelt option before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["load_model", "permutations", "semantics", "targets"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        return importlib.import_module("semaim.checkpoints.two_stream").load_model
    if name in __all__:
        return importlib.import_module(f"semaim.{name}")
    raise AttributeError(f"module 'semaim' has no attribute {name!r}")
