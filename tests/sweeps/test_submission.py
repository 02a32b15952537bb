"""Submission of a sweep: its configurations and code are fixed, large ones are split, no run gets two jobs."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.config.run_spec import compose_run_spec
from semaim.core.files import write_json
from semaim.errors import CannotWrite
from semaim.runs.provenance import PACKAGE
from semaim.sweeps.submit import only_writer
from semaim.sweeps.sweep import Sweep
from support.commands import ENVIRONMENT, PROGRAM, SMALL, start
from support.fake_slurm import SBATCH, FakeQueue
from support.in_process import run_here
from support.waiting import PATIENCE

SWEEP = ("-m", "hydra/launcher=slurm_cpu", "sweep.wait=false", "sweep.check=false", *SMALL)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    queue = FakeQueue(tmp_path / "slurm", array_size=2)
    monkeypatch.setenv("PATH", queue.path)
    return queue


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An experiment in a configuration folder of one's own."""
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\noptimizer: {base_lr: 1e-3}\n")
    return path


def with_own(own: Path, *words: str) -> tuple[str, ...]:
    return (*SWEEP[:1], "--config-dir", str(own.parents[1]), *SWEEP[1:], "+experiment=mine", *words)


def sweep(tmp_path: Path, name: str) -> Sweep:
    return Sweep.load(tmp_path / "runs" / name)


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
    composed = [compose_run_spec(point.overrides, submitted.folders).config for point in submitted.points]
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
    assert "2 of 2 runs are finished or under way already" in capsys.readouterr().err
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


def test_jobs_import_a_copy_of_the_code(tmp_path: Path, slurm: FakeQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the modules of one's own import; `images` is a folder that an import by chance names."""
    imports = "import my_package.helper\nfrom semaim.permutations import Raster\n"
    (tmp_path / "my_orders.py").write_text(f"{imports}\n\nclass Mine(Raster): ...\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "helper.py").write_text("try:\n    import images\nexcept ImportError:\n    pass\n")
    (tmp_path / "my_package" / "gone.py").symlink_to("nowhere")
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "conf" / "permutation").mkdir(parents=True)
    (tmp_path / "conf" / "permutation" / "mine.yaml").write_text("_target_: my_orders.Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_here(tmp_path, "-m", "--config-dir", "conf", *SWEEP[1:], "permutation=mine", "sweep.name=s") == 0
    copied = Path(str(sweep(tmp_path, "s").copied))
    assert copied.parent == tmp_path / "runs" / "s" / "code"
    modules = ["code_version.json", "hydra_plugins", "my_orders.py", "my_package", "semaim"]
    assert sorted(path.name for path in copied.iterdir()) == modules
    assert [path.name for path in (copied / "my_package").iterdir()] == ["helper.py"]
    for name in ("training/loop.py", "conf/config.yaml", "report/published.csv"):
        assert (copied / "semaim" / name).read_bytes() == (PACKAGE / name).read_bytes()
    (script,) = slurm.scripts()
    setup = "\n".join(line for line in script.splitlines() if line.startswith("export PYTHON"))
    say = "import os, sys, json, my_orders, semaim.runs.provenance as p; print(json.dumps([my_orders.__file__, "
    say += "p.__file__, p.code_version()]))"
    (tmp_path / "semaim").mkdir()  # of the working directory, which must not come first
    (tmp_path / "semaim" / "__init__.py").write_text("raise ImportError")
    code = f"{setup}\n\"$0\" -c '{say}'"
    told = subprocess.run(["bash", "-c", code, PROGRAM[0]], cwd=tmp_path, capture_output=True, text=True, check=True)
    mine, provenance, version = json.loads(told.stdout)
    assert [mine, provenance] == [str(copied / "my_orders.py"), str(copied / "semaim" / "runs" / "provenance.py")]
    assert version == json.loads((copied / "code_version.json").read_text())


def test_a_copy_that_would_be_large_is_refused(
    tmp_path: Path, slurm: FakeQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("semaim.sweeps.code_copy.MAX_BYTES", 10_000)
    assert run_here(tmp_path, *SWEEP, "sweep.name=s") == 2
    assert re.search(r"error: \S+/semaim has \S+ [kM]B, too much to be copied for the jobs: keep its data elsewhere, "
                     r"or set sweep.snapshot=false\n", capsys.readouterr().err)  # fmt: skip
    assert run_here(tmp_path, *SWEEP, "sweep.name=s", "sweep.snapshot=false") == 0
    assert sweep(tmp_path, "s").copied is None
    assert "PYTHONPATH" not in slurm.scripts()[0]


def test_changed_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a copy, also a second change of files that are not committed."""
    from semaim.runs import provenance
    from semaim.sweeps.code_copy import checksums_file, fix_code

    package = tmp_path / "checkout" / "semaim"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    (package / "cli.py").write_text("changed once")
    version, _ = fix_code(tmp_path, [], copy=False)
    assert provenance.code_changes(version, checksums_file(tmp_path, version)) is None
    (package / "cli.py").write_text("changed twice")
    (package / "run.py").unlink()
    (package / "own.py").touch()
    assert provenance.code_changes(version, checksums_file(tmp_path, version)) == (
        "commit unknown then, commit unknown now; cli.py, own.py, run.py"
    )


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
