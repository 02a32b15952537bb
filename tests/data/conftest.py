"""Log messages of reading data."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log messages."""
    caplog.set_level(logging.INFO, "semaim")
    return caplog
