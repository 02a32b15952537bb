"""Autoregressive pretraining of vision transformers, patch by patch, the most semantic ones first.

SemAIM (AAAI 2024) and its relatives as one experiment platform: order, target, model, data and recipe are options.

    import semaim

    result = semaim.launch("data=digits", "trainer.epochs=3")  # pretrains; the same call continues it
    result.metrics, result.folder, result.history()  # results by name, the run folder, the journal as a table
    semaim.launch("task=knn", f"checkpoint={result.folder}")  # evaluates

    model = semaim.load_model(result.folder)  # or an official SemAIM or SAIM checkpoint; also result.model
    tokens = model.encode(images)  # (B, 1 + L, D) of normalised images (B, C, H, W); token 0 is cls
    maps = semaim.semantics.semantic_map(tokens, kind="cls")  # (B, L): how semantic each patch is
    order = semaim.permutations.AttentionCenter()(grid=model.grid, batch_size=len(images), semantic_map_BL=maps)
    prediction = model.predict(images, order)  # (B, L, P), each patch from those before it
    target = semaim.targets.Pixels(patch_size=model.patch_size)
    target.loss(prediction, target(images))  # (B, L)

The options are those of the command: `semaim run --help` lists them. The pages of docs/, such as docs/notebook.ipynb,
describe the rest; `pip install "semaim[docs]"` and `mkdocs serve` in a clone show them in a browser.

Names are imported when they are first used, so that a misspelt option is told before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semaim import permutations, semantics, targets
    from semaim.checkpoints.pretrained import load_model
    from semaim.launching import launch

__version__ = "0.2.0"
__all__ = ["launch", "load_model", "permutations", "semantics", "targets"]

_FUNCTIONS = {"launch": "semaim.launching", "load_model": "semaim.checkpoints.pretrained"}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in __all__:
        return importlib.import_module(f"semaim.{name}")
    raise AttributeError(f"module 'semaim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
