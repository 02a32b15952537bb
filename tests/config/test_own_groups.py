"""Group files in a configuration folder of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError


def test_a_group_file_cannot_add_an_option_that_nothing_reads(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    own = tmp_path / "model" / "own.yaml"
    own.write_text("# @package _global_\ndefaults: [aim_tiny@model, _self_]\nmodel: {depth: 2}\n")
    assert compose_run_spec(["model=own"], [f"file://{tmp_path}"]).config["model"]["depth"] == 2
    own.write_text(own.read_text() + "colour: red\n")
    with pytest.raises(UserError, match="there is no option colour"):
        compose_run_spec(["model=own"], [f"file://{tmp_path}"])
