"""The folder in which a run keeps features."""

from __future__ import annotations

import pytest


@pytest.fixture
def kept(tmp_path):
    """The folder of features, which does not exist yet."""
    return tmp_path / "runs" / ".features"
