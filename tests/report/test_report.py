"""The report command and its error messages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from semaim.cli import main
from support.commands import run
from support.evaluations import REPORT, Store, fails, tags


def test_command_in_a_folder(store: Store, tmp_path: Path) -> None:
    shutil.copy(store.path, tmp_path / "mlflow.db")
    done = run(tmp_path, "--experiment", "big", launcher=REPORT)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("# Methods and evaluations\n")
    assert "written: report/report.md\n" in done.stdout
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "accuracy_by_device_hours.png", "accuracy_by_device_hours.svg", "accuracy_by_epochs.png",
        "accuracy_by_epochs.svg", "accuracy_by_flops.png", "accuracy_by_flops.svg", "report.csv", "report.md",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "report"]


def test_mistakes_are_named(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--uri", store.uri, "--output", str(tmp_path / "report"))
    unknown = fails(capsys, *here, "--experiment", "big", "--experiment", "bog")
    assert "--experiment=bog does not exist; there are: Default, big, small" in unknown
    for tag in ("sweep", "=orders", ""):
        assert f"--tag={tag} must be key=value" in fails(capsys, *here, "--tag", tag)
    assert "no finished evaluation fits --data=stl10; there are: digits, imagenet" in fails(
        capsys, *here, "--data", "stl10"
    )
    assert "fits --tag=sweep=sizes; there are: orders" in fails(capsys, *here, "--tag", "sweep=sizes")
    assert "there are: none with this tag" in fails(capsys, *here, "--tag", "swoop=orders")
    assert not (tmp_path / "report").exists()
    (tmp_path / "file").touch()
    assert main(["report", "--uri", store.uri, "--output", str(tmp_path / "file")]) == 2
    assert f"error: --output={tmp_path / 'file'} cannot be written: " in capsys.readouterr().err


def test_without_evaluations_it_shows_how_to_make_one(empty_copy: Store, capsys: pytest.CaptureFixture[str]) -> None:
    how = "semaim run task=knn checkpoint=runs/<name>"
    assert f"there is no evaluation here yet; make one with: {how}" in fails(capsys, "--uri", empty_copy.uri)
    empty_copy.add({"task": "pretrain"}, {"train/loss": 1.0, "eval/knn_10_cls": 50.0})
    empty_copy.add({"task": "visualize", "pretrained.run": "centre-0"}, {"seconds": 1.0})
    assert "there is no evaluation here yet" in fails(capsys, "--uri", empty_copy.uri)
    empty_copy.add(tags("knn", "centre-0"), {"eval/knn_10_cls": 50.0}, status="RUNNING")
    message = fails(capsys, "--uri", empty_copy.uri)
    assert f"of 1 evaluations here none is finished (RUNNING); make one with: {how}" in message
