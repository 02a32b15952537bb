"""Which tests run in one process, when pytest-xdist starts several."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# The tests of these folders share what takes long to make: a cluster, a PostgreSQL, runs to export, a store.
TOGETHER = ("tests/cluster", "tests/tracking", "tests/export", "tests/report")


class ByFile(LoadScopeScheduling):
    """The tests of a file run in one process, since they may share a fixture; those of some folders as well.

    The marker `xdist_group` has no effect: pytest-xdist 3.8 sets a private attribute that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder in TOGETHER else file
