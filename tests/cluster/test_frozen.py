"""Jobs on a real SLURM whose configuration and code are edited while they wait and run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from semaim.runs.provenance import PACKAGE
from semaim.sweeps.sweep import Sweep
from support.commands import status
from support.slurm import Cluster
from support.slurm_runs import CAREFUL, ON_CPU, JobRun, on_node, run_here

pytestmark = pytest.mark.slow
STEPS = ("trainer.max_steps=30", "trainer.save_every_steps=5")


class EditedRun(JobRun):
    """A run whose program is a copy, which can be edited."""

    @property
    def environment(self) -> dict[str, str]:
        variables = super().environment
        return variables | {"PYTHONPATH": f"{self.home / 'src'}:{variables['PYTHONPATH']}"}


@pytest.fixture
def edited(cluster: Cluster, tmp_path: Path) -> EditedRun:
    """A run with an experiment of its own; the job waits until `release`."""
    for name in (PACKAGE.name, "hydra_plugins"):
        shutil.copytree(PACKAGE.parent / name, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    experiment(tmp_path, 1e-3)
    own = ("--config-dir", str(tmp_path / "conf"), "+experiment=mine")
    waits = "+hydra.launcher.additional_parameters.hold=true"
    return EditedRun(cluster, tmp_path, "edited", (*own, *CAREFUL, *STEPS, *ON_CPU, waits))


def experiment(home: Path, base_lr: float) -> None:
    path = home / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# @package _global_\noptimizer: {{base_lr: {base_lr}}}\n")


def test_edits_change_nothing_for_jobs_that_wait_or_run(edited: EditedRun) -> None:
    """The order of events: submitted, edited, started, edited, requeued, continued."""
    home, loop = edited.home, edited.home / "src" / "semaim" / "training" / "loop.py"
    run_here(home, "--config-dir", str(home / "conf"), "+experiment=mine", *CAREFUL, *STEPS, "run_name=undisturbed")
    edited.submit(0.2)
    experiment(home, 5e-3)
    loop.write_text("raise SystemExit('edited')\n")
    edited.cluster.run("scontrol", "release", edited.job)
    edited.wait_for_step(7)
    shutil.rmtree(home / "conf")
    edited.cluster.requeue(edited.job)
    edited.continue_now(1)
    edited.finish()
    assert len(edited.stops()) == 1
    edited.assert_every_step_once()
    undisturbed = home / "runs" / "undisturbed"
    assert status(edited.folder)["result"] == status(undisturbed)["result"]
    assert "the code has changed" not in edited.printed()


def test_without_a_copy_changed_code_is_named(edited: EditedRun) -> None:
    edited.submit(0, "sweep.snapshot=false")
    with (edited.home / "src" / "semaim" / "training" / "loop.py").open("a") as file:
        file.write("# edited\n")
    edited.cluster.run("scontrol", "release", edited.job)
    edited.finish()
    said = "the code has changed since this was submitted: commit unknown then, commit unknown now; training/loop.py"
    assert said in edited.printed()


def test_a_requeued_array_keeps_its_configuration(cluster: Cluster, tmp_path: Path) -> None:
    """Both tasks of an array, one running and one waiting for the other's node, get what they were submitted with."""
    experiment(tmp_path, 1e-3)
    words = ("-m", "--config-dir", "conf", "+experiment=mine", "seed=0,1", "sweep.name=s", *CAREFUL, *STEPS, *ON_CPU)
    run = JobRun(cluster, tmp_path, "pace", ())
    run.pace(0.1)
    run.run_semaim("semaim.run", *words, *on_node("n1"), "hydra.launcher.array_parallelism=1", "sweep.wait=false")
    experiment(tmp_path, 5e-3)
    run.at_full_speed()
    run.run_semaim("semaim", "status", "--watch", "runs/s")
    points = Sweep.load(tmp_path / "runs" / "s").points
    assert [point.folder.state() for point in points] == ["finished"] * 2
    assert [point.folder.config()["optimizer"]["base_lr"] for point in points] == [1e-3] * 2
