"""Names of many files in one block of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Names(Sequence[str]):
    """Names of files, which forked workers share: reference counts of a list of strings would copy its memory.

    Args:
        joined: the names as the file system has them, each but the last followed by a zero byte.
    """

    def __init__(self, joined: Bytes) -> None:
        self.joined = joined
        ends = np.flatnonzero(joined == 0)
        self._starts = np.concatenate([[0], ends + 1, [len(joined) + 1]]) if len(joined) else np.zeros(1, np.int64)

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names as one block; none of them may be empty."""
        return cls(np.frombuffer(os.fsencode("\0".join(names)), np.uint8))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no name {index} of {len(self)}")
        index %= len(self)
        return os.fsdecode(self.joined[self._starts[index] : self._starts[index + 1] - 1].tobytes())
