"""docs/adding-an-evaluator.md is correct: its code blocks are written to files and its command is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.commands import journal, status
from support.pages import Page, run_as_typed

PAGE = Page("adding-an-evaluator")


def test_the_page_makes_an_evaluator(tmp_path: Path) -> None:
    PAGE.write(tmp_path)
    (command,) = PAGE.commands
    log = run_as_typed(command, tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    result = status(folder)["result"]
    assert set(result) == {"loss"} | {
        f"online/{name}_{when}"
        for name in ("effective_rank", "knn_10_cls", "knn_10_mean", "knn_20_cls", "knn_20_mean")
        for when in ("before", "after")
    }
    for when, step in (("before", 0), ("after", 2)):
        value = result[f"online/effective_rank_{when}"]
        assert 1 < value < 96  # the width
        assert f"online/effective_rank_{when}" in log
        (logged,) = [line["metrics"] for line in journal(folder) if line.get("step") == step
                     and "online/effective_rank" in line.get("metrics", {})]  # fmt: skip
        assert logged["online/effective_rank"] == value


def test_its_options_on_the_command_line(tmp_path: Path) -> None:
    PAGE.write(tmp_path)
    (command,) = PAGE.commands
    run_as_typed(command, tmp_path, "task.evaluators.rank.images=2", "task.evaluators.knn=null", "run_name=two")
    result = status(tmp_path / "runs" / "two")["result"]
    assert set(result) == {"loss", "online/effective_rank_before", "online/effective_rank_after"}
    assert 1 < result["online/effective_rank_before"] <= 2 + 1e-4  # of two features


def test_the_rank_is_that_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthogonal features of equal length use all their dimensions, equal ones a single one."""
    PAGE.write(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import my_evaluators  # type: ignore[import-not-found]

    class Extracted:
        def __init__(self, features_MD: torch.Tensor) -> None:
            self.features_MD = features_MD

        def tensor(self, _: str) -> torch.Tensor:
            return self.features_MD

    from types import SimpleNamespace

    learner = SimpleNamespace(data=SimpleNamespace(splits=SimpleNamespace(val=[0] * 8)), features=None)
    for features_MD, expected in ((torch.eye(8), 8.0), (torch.ones(8, 8), 1.0)):
        monkeypatch.setattr(my_evaluators, "extract", lambda *_, given=features_MD: Extracted(given))
        measured = my_evaluators.EffectiveRank(1, 8, 8).evaluate(learner, None)
        assert measured["online/effective_rank"] == pytest.approx(expected, rel=1e-4)
