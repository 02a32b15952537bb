"""Detects operations for which a host would wait for its GPU, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "item", "_unique2", "allclose"}


class NoHostReads(TorchDispatchMode):
    """Fails at every operation for which a host would wait for its GPU.

    Args:
        device: stands for the GPU: "cpu", or "cuda" for tensors without values, to which copies are checked as well.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.allowed = False
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.operations += 1
        if not self.allowed:
            assert name not in READS, func
            assert not (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])), func
            if self.device != "cpu" and name in ("_to_copy", "copy_", "lift_fresh"):
                source = args[1] if name == "copy_" else args[0]
                waits = not (kwargs.get("non_blocking", False) or (name == "copy_" and True in args[2:]))
                moves = name == "lift_fresh" or source.device.type != found.device.type
                assert not (moves and waits and found.device.type == self.device), func
        return found


@contextmanager
def pretended() -> Iterator[NoHostReads]:
    """Tensors of a GPU that have shapes only, since there is no GPU."""
    with FakeTensorMode(), NoHostReads("cuda") as mode:
        yield mode
