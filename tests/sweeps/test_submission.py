"""Submission of a sweep: its configurations and code are fixed, large ones are split, no run gets two jobs."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.config.follow_ups import follow_ups
from semaim.config.run_spec import compose_run_spec
from semaim.core.files import write_json
from semaim.errors import CannotWrite
from semaim.sweeps.submit import only_writer
from semaim.sweeps.sweep import Sweep
from support.commands import ENVIRONMENT, PROGRAM, SMALL, start
from support.fake_slurm import SBATCH, FakeQueue
from support.in_process import run_here
from support.submitting import SWEEP, sweep
from support.waiting import PATIENCE


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An experiment in a configuration folder of one's own."""
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\noptimizer: {base_lr: 1e-3}\n")
    return path


def with_own(own: Path, *words: str) -> tuple[str, ...]:
    return (*SWEEP[:1], "--config-dir", str(own.parents[1]), *SWEEP[1:], "+experiment=mine", *words)


def test_large_arrays_are_split_together_with_their_evaluations(tmp_path: Path, slurm: FakeQueue) -> None:
    words = ("seed=0,1,2,3,4", "then=[knn]", "sweep.name=s", "hydra.launcher.array_parallelism=5")
    assert run_here(tmp_path, *SWEEP, *words) == 0
    assert slurm.options("array") == ["0-1%1", "0-1%1", "0-1%1", "0-1%1", None, None], "a third of five at once in each"
    assert slurm.options("dependency") == [None, "aftercorr:1", None, "aftercorr:3", None, "afterok:5"]
    points = sweep(tmp_path, "s").points
    pretraining = [point.job for point in points if point.after is None]
    assert pretraining == ["1_0", "1_1", "3_0", "3_1", "5"]
    assert [point.job for point in points if point.after is not None] == ["2_0", "2_1", "4_0", "4_1", "6"]


@pytest.mark.usefixtures("slurm")
def test_runs_keep_the_configuration_of_their_submission(tmp_path: Path, own: Path) -> None:
    assert run_here(tmp_path, *with_own(own, "seed=0,1", "then=[knn]", "sweep.name=s")) == 0
    submitted = sweep(tmp_path, "s")
    before = [[spec.stored() for spec in submitted.runs(point)] for point in submitted.points]
    firsts = [compose_run_spec(each.overrides, submitted.folders) for each in submitted.points if each.after is None]
    composed = [spec.config for first in firsts for spec in (first, *follow_ups(first))]
    parents = [point.parent for point in submitted.points]
    assert [specs[0]["config"] for specs in before] == [
        config | {"parent_run": parent} for config, parent in zip(composed, parents, strict=True)
    ]
    assert before[0][0]["config"]["optimizer"]["base_lr"] == 1e-3
    own.write_text("# @package _global_\noptimizer: {base_lr: 5e-3}\n")
    assert [[spec.stored() for spec in submitted.runs(point)] for point in submitted.points] == before
    own.unlink()
    assert [[spec.stored() for spec in submitted.runs(point)] for point in submitted.points] == before


def test_a_job_that_waits_is_not_submitted_again_with_another_configuration(
    tmp_path: Path, slurm: FakeQueue, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = with_own(own, "seed=0,1", "sweep.name=s")
    assert run_here(tmp_path, *words) == 0
    own.write_text("# @package _global_\noptimizer: {base_lr: 5e-3}\n")
    capsys.readouterr()
    assert run_here(tmp_path, *words) == 2
    err = capsys.readouterr().err
    assert re.search(r"error: job 1_0 of \S+ was submitted with another configuration:\n  optimizer.base_lr: 0.001 -> "
                     r"0.005\n  Cancel it first \(semaim cancel \S+/runs/s\), or go back", err)  # fmt: skip
    own.write_text("# @package _global_\noptimizer: {base_lr: 1e-3}\n")
    assert run_here(tmp_path, *words) == 0
    assert "already finished or under way: 2 of 2 runs" in capsys.readouterr().err
    assert len(slurm.scripts()) == 1


def test_a_started_run_is_not_submitted_with_another_configuration(
    tmp_path: Path, slurm: FakeQueue, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = with_own(own, "seed=0,1", "sweep.name=s")
    assert run_here(tmp_path, *words) == 0
    submitted = sweep(tmp_path, "s")
    for point, job in zip(submitted.points, ("1_0", "1_1"), strict=True):
        point.folder.path.mkdir()
        point.folder.store_or_check_config(submitted.runs(point)[0].config)
        slurm.set_state(job, "FAILED")
    own.write_text("# @package _global_\noptimizer: {base_lr: 5e-3}\n")
    capsys.readouterr()
    assert run_here(tmp_path, *words) == 2
    assert "was started with another configuration (config.yaml):\n  optimizer.base_lr: 0.001 -> 0.005" in (
        capsys.readouterr().err
    )
    assert main(["retry", "--failed", str(submitted.path)]) == 0  # with the configuration that it was started with
    assert len(slurm.scripts()) == 2
    assert [spec.config["optimizer"]["base_lr"] for spec in submitted.runs(submitted.points[0])] == [1e-3]


def test_an_extended_sweep_takes_over_live_jobs(
    tmp_path: Path, slurm: FakeQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=two") == 0
    slurm.set_state("1_0", "FAILED")
    assert run_here(tmp_path, *SWEEP, "seed=0,1,2", "sweep.name=three") == 0
    assert "1 run under way as jobs of runs/two" in capsys.readouterr().err
    two, three = sweep(tmp_path, "two"), sweep(tmp_path, "three")
    assert [point.job for point in three.points] == ["2_0", "1_1", "2_1"]
    assert [point.sweep for point in three.points] == [None, str(two.path), None]
    assert three.points[1].parent == two.points[1].parent == str(two.path)
    assert three.job_folder(three.points[1]) == two.path / "jobs" / "1_1"
    assert three.runs(three.points[1])[0].config == two.runs(two.points[1])[0].config
    # the first sweep does not submit seed=0 again either, since the second one has
    assert main(["retry", "--failed", str(two.path)]) == 0
    assert len(slurm.scripts()) == 2
    assert [point.job for point in sweep(tmp_path, "two").points] == ["2_0", "1_1"]


def test_a_run_is_not_deleted_or_ended_while_another_sweep_continues_it(
    tmp_path: Path, slurm: FakeQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job of the first sweep has failed, that of the second one waits to go on with the run."""
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=two") == 0
    slurm.set_state("1_0", "FAILED")
    slurm.set_state("1_1", "FAILED")
    assert run_here(tmp_path, *SWEEP, "seed=0,2", "sweep.name=other") == 0
    folder = sweep(tmp_path, "two").points[0].folder
    folder.path.mkdir()
    write_json(folder.path / "status.json", {"state": "requeued", "job": "2_0", "host": "n1", "pid": 1})
    capsys.readouterr()
    assert main(["status", str(tmp_path / "runs" / "two")]) == 1
    assert folder.status()["state"] == "requeued"
    assert main(["rm", "--yes", str(tmp_path / "runs" / "two")]) == 2
    err = capsys.readouterr().err
    assert "1 run under way as jobs of " in err
    assert f"error: {tmp_path}/runs/two is not over ({folder.path.name}): wait for it, or stop it" in err


def test_a_sweep_does_not_lose_live_jobs(tmp_path: Path, slurm: FakeQueue, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name is used again, without one of its runs."""
    assert run_here(tmp_path, *SWEEP, "seed=0,1,2", "sweep.name=s") == 0
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=s") == 2
    assert "runs/s has jobs that are not over, nor of this command (2): wait for them, or semaim cancel" in (
        capsys.readouterr().err
    )
    assert [point.job for point in sweep(tmp_path, "s").points] == ["1_0", "1_1", "2"]
    slurm.set_state("2", "FAILED")
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=s") == 0
    assert [point.job for point in sweep(tmp_path, "s").points] == ["1_0", "1_1"]
    assert len(slurm.scripts()) == 2


def test_a_run_has_one_job_by_whatever_path_its_folder_is_named(tmp_path: Path, slurm: FakeQueue) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=s") == 0
    elsewhere = (*SWEEP, f"runs_dir={tmp_path / 'disk'}")
    assert run_here(tmp_path, *elsewhere, "seed=0,1", "sweep.name=s") == 0
    assert run_here(tmp_path, *elsewhere, "seed=0,1,2", "sweep.name=three") == 0
    assert [point.job for point in sweep(tmp_path, "three").points] == ["1_0", "1_1", "2"]
    assert len(slurm.scripts()) == 2


@pytest.mark.usefixtures("slurm")
def test_a_sweep_in_this_process_does_not_replace_one_with_live_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sweep.name=s", "seed=0,1", "sweep.check=false", *SMALL)
    assert run_here(tmp_path, "-m", "hydra/launcher=slurm_cpu", "sweep.wait=false", *words) == 0
    capsys.readouterr()
    assert run_here(tmp_path, "-m", *words) == 2
    assert "runs/s has jobs that are not over, nor of this command (1_0, 1_1): wait for them" in capsys.readouterr().err
    assert [point.job for point in sweep(tmp_path, "s").points] == ["1_0", "1_1"]


def test_two_retries_at_once_submit_each_point_once(tmp_path: Path, slurm: FakeQueue) -> None:
    assert run_here(tmp_path, *SWEEP, "seed=0,1,2", "sweep.name=s") == 0
    for job in ("1_0", "1_1", "2"):
        slurm.set_state(job, "FAILED")
    environment = ENVIRONMENT | {"PATH": slurm.path}
    command = [*PROGRAM, "retry", "--failed", "runs/s"]
    both = [start(command, tmp_path, environment) for _ in range(3)]
    said = "".join(process.communicate(timeout=PATIENCE)[0] for process in both)
    assert sorted(re.findall(r"submitted (\d) jobs?", said)) == ["0", "0", "3"], said
    assert len(slurm.scripts()) == 4


@pytest.mark.usefixtures("slurm")
def test_a_point_of_an_earlier_version_is_composed(tmp_path: Path) -> None:
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=s") == 0
    shutil.rmtree(tmp_path / "runs" / "s" / "submitted")
    path = tmp_path / "runs" / "s" / "sweep.json"
    stored = json.loads(path.read_text())
    for name in ("snapshot", "copied"):
        del stored[name]
    for point in stored["points"]:
        del point["sweep"]
    write_json(path, stored)
    old = sweep(tmp_path, "s")
    assert [old.runs(point)[0].config["seed"] for point in old.points] == [0, 1]
    assert old.runs(old.points[0])[0].config["parent_run"] == str(old.path)


def test_what_slurm_accepts_in_part_is_said(
    tmp_path: Path, slurm: FakeQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here, SLURM accepts one array of two jobs."""
    slurm.does(
        "sbatch", f'[ -z "$(ls "$0.scripts")" ] || {{ echo "QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}{SBATCH}'
    )
    assert run_here(tmp_path, *SWEEP, "seed=0,1,2", "sweep.name=s") == 2
    err = capsys.readouterr().err
    assert "error: SLURM does not accept the jobs: " in err
    assert "QOSMaxSubmitJobPerUserLimit; 2 of 3 jobs were submitted; later submit the rest with semaim retry" in err
    assert [point.job for point in sweep(tmp_path, "s").points] == ["1_0", "1_1", None]
    slurm.does("sbatch", SBATCH)
    assert main(["retry", "--failed", str(tmp_path / "runs" / "s")]) == 0
    assert [point.job for point in sweep(tmp_path, "s").points] == ["1_0", "1_1", "2"]


def test_jobs_that_cannot_be_noted_are_cancelled(
    tmp_path: Path, slurm: FakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after their submission."""
    save, saves = Sweep.save, iter([True, False])

    def once(self: Sweep) -> None:
        if not next(saves):
            raise CannotWrite(self.path, OSError(errno.ENOSPC, "No space left on device"))
        save(self)

    monkeypatch.setattr(Sweep, "save", once)
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=s") == 1
    assert slurm.asked("scancel") == ["1_0", "1_1"]
    assert [point.job for point in sweep(tmp_path, "s").points] == [None, None]


def test_who_may_write_in_a_shared_folder_may_submit(tmp_path: Path) -> None:
    """The lock of another user can be taken, whatever that user's umask is."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o2770)
    with only_writer(tmp_path / "runs" / "sweep"):
        pass
    assert (tmp_path / "runs" / ".submission.lock").stat().st_mode & 0o777 == 0o660
