"""Assignment of tests to processes under pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# Tests in these folders share slow fixtures: a cluster, a PostgreSQL server, runs to export, a store.
TOGETHER = ("tests/cluster", "tests/tracking", "tests/export", "tests/report")


class ByFile(LoadScopeScheduling):
    """Run the tests of a file in one process, since they may share a fixture; likewise those of some folders.

    The marker `xdist_group` has no effect: pytest-xdist 3.8 sets a private attribute that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder in TOGETHER else file
