"""Sweeps in this process: one run per point; a failed run does not affect the others."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from support.commands import SMALL, losses, run, started, status
from support.in_process import run_here
from support.waiting import PATIENCE, wait_for


def test_sweep_from_another_directory_makes_a_run_for_each_point(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "permutation=raster,stochastic", "trainer.max_steps=2", *SMALL)
    assert done.returncode == 0, done.stdout
    folders = sorted(path.parent for path in (tmp_path / "runs").glob("*/status.json"))
    assert len(folders) == 2
    for folder, order in zip(folders, ("raster", "stochastic"), strict=True):
        assert folder.name.startswith(f"pretrain_digits_aim_tiny_{order}_pixels_")
        assert status(folder)["state"] == "finished"
        assert (folder / "checkpoints" / "step_00000002.pt").is_file()
    results = [status(folder)["result"]["loss"] for folder in folders]
    assert results[0] != results[1]


def test_a_failed_point_does_not_affect_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("-m", "model.query_depth=3,2", "trainer.max_steps=2", *SMALL)  # the failing one first
    assert run_here(tmp_path, *sweep) == 2
    err = capsys.readouterr().err
    assert "model.query_depth=3 must divide model.depth=4: choose one of [1, 2, 4] [model.query_depth=3]" in err
    assert not list((tmp_path / "runs").glob("*/status.json")), "nothing was started"
    assert run_here(tmp_path, *sweep, "sweep.check=false") == 1
    err = capsys.readouterr().err
    assert re.search(r"\nmodel.query_depth=3 +- +failed +model.query_depth=3 must divide model.depth=4", err)
    assert re.search(r"\nmodel.query_depth=2 +- +finished +train/loss [\d.]+", err)
    assert "error: 1 of 2 runs did not finish" in err
    assert "Traceback" not in err
    (finished,) = (tmp_path / "runs").glob("*/status.json")
    assert status(finished.parent)["state"] == "finished"
    assert OmegaConf.load(finished.parent / "config.yaml").model.query_depth == 2


def test_ctrl_c_during_a_sweep_says_how_many_runs_did_not_start(tmp_path: Path) -> None:
    with started(tmp_path, "-m", "seed=0,1,2", *SMALL, "sweep.check=false") as process:
        wait_for(lambda: [each for each in tmp_path.glob("runs/pretrain*") if losses(each)], "a step")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert "\nSIGINT: finishing this step and saving; press Ctrl-C again to quit now\n" in out
    assert re.search(r"step \d+, which is saved; 2 runs of the sweep did not start; the same command continues\n$", out)


def test_ctrl_c_stops_the_processes_of_a_local_sweep_after_their_step(tmp_path: Path) -> None:
    """A terminal sends it to the whole process group: to submitit's processes and to the runs, too."""
    with started(tmp_path, "-m", "hydra/launcher=submitit_local", "seed=0,1", *SMALL, "sweep.check=false") as process:
        folders = wait_for(
            lambda: len(found := [each for each in tmp_path.glob("runs/pretrain*") if losses(each)]) == 2 and found,
            "a step of both",
        )
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, out
    assert "every run finishes its step and saves; press Ctrl-C again to quit now" in out
    for folder in folders:
        last = max(losses(folder))
        assert status(folder)["state"] == "interrupted"
        assert (folder / "checkpoints" / f"step_{last:08d}.pt").is_file()


@pytest.mark.parametrize(("words", "message"), [
    (["-m", "seed=0,-1", "trainer.max_steps=1"], "seed=-1: seed must be a whole number, not negative, such as 0"),
    (["trainer.max_steps=1", "-m", "seed=range(0,-3)"], "seed=range(0,-3) has no values"),
])  # fmt: skip
def test_a_refused_sweep_writes_nothing(words: list[str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_restarted_job_continues_a_sweep_as_its_runs_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch script of one's own, which SLURM has requeued; an experiment was edited meanwhile."""
    experiment = tmp_path / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\noptimizer: {base_lr: 1e-3}\n")
    words = ("-m", "--config-dir", "conf", "+experiment=mine", "seed=0,1", *SMALL)
    assert run_here(tmp_path, *words, "trainer.max_steps=1", "sweep.check=false") == 0
    experiment.write_text("# @package _global_\noptimizer: {base_lr: 5e-3}\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run_here(tmp_path, *words, "trainer.max_steps=2") == 0
    assert "uses the one that it began with, not optimizer.base_lr: 0.001 -> 0.005" in capsys.readouterr().err
    folders = [path.parent for path in tmp_path.glob("runs/pretrain*/status.json")]
    assert [OmegaConf.load(folder / "config.yaml").optimizer.base_lr for folder in folders] == [1e-3] * 2
    assert [max(losses(folder)) for folder in folders] == [2] * 2
