"""How a test loads images: the last arguments of `training_batches` and `evaluation_batches`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from semaim.core.distributed import Processes
from semaim.data.workers import Loading
from support.evaluating import ALONE
from support.waiting import PATIENCE


def loading(
    workers: int, seconds: float = PATIENCE, image_bytes: int = 0, stopped_by: str | None = None
) -> tuple[Loading, Processes, Any]:
    """Loading by some workers in one process, which has received a signal or not."""
    stop = SimpleNamespace(requested=stopped_by is not None, name=stopped_by)
    return Loading(workers, seconds, image_bytes), ALONE, stop
