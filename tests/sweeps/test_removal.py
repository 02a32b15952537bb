"""`semaim rm` deletes runs and sweeps with their checkpoints and MLflow runs. It asks first and refuses live runs."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from semaim.core.files import write_json
from semaim.runs.folder import RunFolder
from semaim.sweeps.sweep import Point, Sweep
from semaim.tracking.sync import sync
from support.commands import ENVIRONMENT, PROGRAM, run, succeed
from support.holding import holding
from support.stored_runs import unpack
from support.waiting import PATIENCE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory with two finished runs, `pretraining` and `finetuning`."""
    return unpack(tmp_path)


@pytest.fixture
def tracked(home: Path) -> tuple[Path, MlflowClient, str]:
    """The same, with `pretraining` in MLflow; the store and its run."""
    uri = f"sqlite:///{home}/mlflow.db"
    sync(home / "runs" / "pretraining", uri)
    run_id = RunFolder(home / "runs" / "pretraining").tracked()["run_id"]
    return home, MlflowClient(uri), run_id


def remove(home: Path, *words: str) -> str:
    return succeed(home, "rm", *words, launcher=PROGRAM)


def test_a_run_with_its_checkpoints_and_its_mlflow_run(tracked) -> None:
    home, client, run_id = tracked
    said = remove(home, "--yes", "runs/pretraining")
    assert f"MLflow run {run_id}" in said
    assert said.endswith("deleted runs/pretraining\n")
    assert [path.name for path in (home / "runs").iterdir()] == ["finetuning"]
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_run_that_mlflow_has_deleted_already(tracked) -> None:
    home, client, run_id = tracked
    client.delete_run(run_id)
    remove(home, "--yes", "runs/pretraining")
    assert not (home / "runs" / "pretraining").exists()


def test_the_mlflow_run_can_be_kept(tracked) -> None:
    home, client, run_id = tracked
    remove(home, "--yes", "--keep-mlflow", "runs/pretraining", "runs/finetuning")
    assert not list((home / "runs").iterdir())
    assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_nothing_is_deleted_if_mlflow_does_not_answer(home: Path) -> None:
    uri = "http://127.0.0.1:1"
    tracked = {"uid": "0", "experiment": "semaim", "uri": uri, "run_id": "abc", "sent": 0}
    write_json(home / "runs" / "pretraining" / "mlflow.json", tracked)
    done = run(home, "rm", "--yes", "runs/pretraining", "--uri", uri, launcher=PROGRAM)
    assert done.returncode == 2
    assert "error: runs/pretraining was not deleted, since its MLflow run cannot be deleted" in done.stdout
    assert "semaim rm --keep-mlflow runs/pretraining" in done.stdout
    assert (home / "runs" / "pretraining" / "checkpoints" / "step_00000002.pt").is_file()


@pytest.mark.parametrize(("answer", "left"), [("y\n", 1), ("n\n", 2), ("\n", 2)])
def test_it_asks_on_a_terminal(home: Path, answer: str, left: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "rm", "runs/finetuning"], cwd=home, env=ENVIRONMENT, stdin=theirs, stdout=subprocess.PIPE, text=True
    )
    os.write(ours, answer.encode())
    said, _ = process.communicate(timeout=PATIENCE)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert "runs/finetuning  (" in said
    assert "delete for good? [y/N]" in said
    assert len(list((home / "runs").iterdir())) == left


def test_without_a_terminal_it_needs_yes(home: Path) -> None:
    done = run(home, "rm", "runs/finetuning", launcher=PROGRAM)
    assert done.returncode == 2
    assert "give --yes to delete without asking" in done.stdout
    assert (home / "runs" / "finetuning").is_dir()


def test_a_live_run_is_refused_and_nothing_else_deleted(home: Path) -> None:
    with holding(home / "runs" / "pretraining"):
        done = run(home, "rm", "--yes", "runs/finetuning", "runs/pretraining", launcher=PROGRAM)
    assert done.returncode == 2
    assert (
        "error: runs/pretraining is not over (pretraining): wait for it, or stop it with semaim cancel" in done.stdout
    )
    assert len(list((home / "runs").iterdir())) == 2
    remove(home, "--yes", "runs/pretraining")  # its process is gone


def test_a_sweep_with_all_its_runs(home: Path) -> None:
    places = [str(home / "runs" / name) for name in ("pretraining", "finetuning", "never_started")]
    points = [Point(["seed=0"], places[0], job="here", then=[places[1]]), Point(["seed=1"], places[2])]
    Sweep("basic", {}, points, restarts=0, command="", path=home / "runs" / "sweep_x").save()
    said = remove(home, "--yes", "runs/sweep_x")
    assert said.startswith("to be deleted, 3 folders, ")
    assert not list((home / "runs").iterdir())


def test_a_copy_of_a_sweep_does_not_delete_the_runs_of_the_original(home: Path) -> None:
    Sweep("basic", {}, [Point([], str(home / "runs" / "pretraining"))], 0, "", path=home / "runs" / "sweep_x").save()
    shutil.copytree(home / "runs", home / "copy")
    assert remove(home, "--yes", "copy/sweep_x").startswith("to be deleted, 1 folder, ")
    assert {path.name for path in (home / "runs").iterdir()} == {"pretraining", "finetuning", "sweep_x"}
    remove(home, "--yes", "runs/sweep_x")
    assert [path.name for path in (home / "runs").iterdir()] == ["finetuning"]


@pytest.mark.parametrize("folder", [".", "runs", "runs/pretraining/checkpoints"])
def test_other_folders_are_refused(home: Path, folder: str) -> None:
    done = run(home, "rm", "--yes", folder, launcher=PROGRAM)
    assert done.returncode == 2
    assert f"error: {folder} is neither the folder of a sweep nor of a run" in done.stdout
    assert (home / "runs" / "pretraining" / "checkpoints" / "step_00000002.pt").is_file()
