"""`semaim check` writes nothing; with --fetch it downloads what the runs would."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from semaim.preflight import check as preflight
from semaim.sweeps import launcher, trial
from semaim.teachers import Teacher
from support.checking import command

LACKING = "note: the runs will download their data, which cannot be checked yet: --fetch downloads them now"


class Cifar10:
    """torchvision's data set, of five images, where a download makes a file."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        file = Path(root, "train" if train else "test")
        if download:
            file.parent.mkdir(exist_ok=True)
            file.touch()
        if not file.is_file():
            raise RuntimeError("Dataset not found or corrupted.")
        self.data, self.targets = np.zeros((5, 32, 32, 3), np.uint8), [0] * 5


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the data are to be."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Cifar10)
    return tmp_path / "cifar10"


def test_data_are_downloaded_only_on_request(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("data=cifar10", f"data.root={root}", "tracking=none", "trainer.batch_size=5", "then=[knn]")
    assert command(*options) == 0
    said = capsys.readouterr().out.splitlines()
    assert LACKING in said
    assert said[-1] == "OK: 1 run and 1 evaluation after, 1 process each, about 0.0 GPU-hours"
    assert list(tmp_path.iterdir()) == []
    assert command(*options, "--fetch") == 2  # five images are too few for k = 10
    assert "there are 5 labelled training images" in capsys.readouterr().out
    assert sorted(path.name for path in root.iterdir()) == [".download.lock", "test", "train"]
    assert command(*options, "then=[]") == 0
    row = capsys.readouterr().out.splitlines()
    assert "  5  " in row[1]
    assert LACKING not in row


def test_data_that_no_run_would_download_are_a_problem(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data=cifar10", f"data.root={root}", "data.source.download=false", "tracking=none") == 2
    assert f"problem: CIFAR-10 is neither complete in data.root={root}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "fetched"), [((), 0), (("--fetch",), 1)])
def test_a_teacher_is_fetched_only_on_request(words: tuple[str, ...], fetched: int) -> None:
    with mock.patch.object(Teacher, "load") as load:
        assert command("target=dino", "tracking=none", *words) == 0
    assert load.call_count == fetched


def test_a_sweep_fetches_before_it_starts() -> None:
    """Its jobs may run where there is no network."""
    sweep: Any = mock.Mock(points=[mock.Mock(overrides=["seed=1"], after=None)], executor="basic", folders=[])
    with mock.patch.object(preflight, "check_sweep", return_value=mock.Mock(problems=[])) as checking:
        launcher._preflight(sweep, [0])
    assert checking.call_args == mock.call(
        [["seed=1"]], [], {"tasks_per_node": 1}, fetch=True, ask_slurm=trial.sbatch_answer
    )
