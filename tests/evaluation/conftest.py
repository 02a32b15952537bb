"""The feature folder of a run."""

from __future__ import annotations

import pytest


@pytest.fixture
def kept(tmp_path):
    """The feature folder, which does not exist yet."""
    return tmp_path / "runs" / ".features"
