"""Assignment of tests to processes under pytest-xdist."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

# Tests in these folders share slow fixtures: a cluster, a PostgreSQL server, runs to export, a store.
TOGETHER = ("tests/cluster", "tests/tracking", "tests/export", "tests/report")


class ByFile(LoadScopeScheduling):
    """Run the tests of a file in one process, since they may share a fixture; likewise those of some folders.

    The marker `xdist_group` has no effect: pytest-xdist 3.8 sets a private attribute that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return folder_together(file) or file


def folder_together(file: str) -> str | None:
    """The folder of a test file if its tests run in one process."""
    folder = file.rpartition("/")[0]
    return folder if folder in TOGETHER else None


def longest_first(items: list[pytest.Item]) -> None:
    """Move the folders that run in one process to the front, so that no process runs one of them alone at the end."""
    items.sort(key=lambda item: folder_together(item.nodeid.partition("::")[0]) is None)
