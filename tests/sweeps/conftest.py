"""A queue in place of SLURM, for the tests of submission."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fake_slurm import FakeQueue


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    queue = FakeQueue(tmp_path / "slurm", array_size=2)
    monkeypatch.setenv("PATH", queue.path)
    return queue
