"""The cluster fixture for the scenarios of a whole file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.slurm import Cluster, used


@pytest.fixture(scope="module")
def cluster_of_file(running_cluster: Cluster) -> Iterator[Cluster]:
    """A SLURM cluster whose jobs persist between the tests of a file; the queue is emptied at the end."""
    with used(running_cluster):
        yield running_cluster
