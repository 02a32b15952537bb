"""Batch scripts of one's own: `srun` starts the processes of a run, as on docs/cluster.md; without it there is one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.at_once import AtOnce, chosen, on_cluster
from support.commands import SMALL, journal, losses, status, together
from support.evaluating import assert_same_bits
from support.pages import Page, run_as_typed
from support.slurm import Cluster
from support.waiting import wait_for

pytestmark = pytest.mark.slow
SIX_STEPS = (*SMALL, "trainer.max_steps=6", "trainer.save_every_steps=3")
[ON_THE_PAGE] = re.findall(r"```bash\n(cat > train.sh .*?)```", Page("cluster").text, re.DOTALL)


def submit(cluster: Cluster, home: Path, command: str) -> str:
    """Type a command, the last line of which is sbatch; returns the job."""
    home.mkdir()
    said = run_as_typed(command, home, SLURM_CONF=cluster.environment["SLURM_CONF"])
    return said.split()[-1]


def script_of_the_page(*options: str) -> str:
    typed = "run_name=mine trainer.epochs=5"
    assert typed in ON_THE_PAGE
    small = ON_THE_PAGE.replace(typed, f"{' '.join(options)}; echo code $?").replace("--cpus-per-task=2", "-c 1 -o out")
    return small.replace("semaim run", f"{sys.executable} -m semaim.run")


class Scenarios:
    """What is done with a cluster, each in a folder of its own."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster, self.home = cluster, home

    def page(self) -> Path:
        home = self.home / "page"
        job = submit(self.cluster, home, script_of_the_page(*SIX_STEPS, "run_name=mine"))
        self.cluster.wait_for_state(job, "COMPLETED", "FAILED")
        return home

    def signal(self) -> tuple[Path, dict[str, str]]:
        home = self.home / "signal"
        job = submit(self.cluster, home, script_of_the_page(*SMALL, "trainer.epochs=9000", "run_name=long"))
        wait_for(lambda: len(journal(home / "runs" / "long")) > 5, lambda: (home / "out").read_text())
        self.cluster.run("scancel", "--signal=USR2", job)
        self.cluster.wait_for_state(job, "COMPLETED", "FAILED")
        return home, self.cluster.job(job)

    def batch(self) -> Path:
        home, options = self.home / "batch", " ".join(SIX_STEPS)
        python = f"{sys.executable} -m"
        lines = f"""{python} semaim.run {options} run_name=alone
            {python} torch.distributed.run --standalone --nproc-per-node=2 -m semaim.run {options} run_name=two
            srun -n2 {python} semaim.run -m {options} sweep.check=false seed=0,1"""
        job = submit(self.cluster, home, f"sbatch --ntasks=2 -o out --wrap '{lines}'")
        self.cluster.wait_for_state(job, "COMPLETED", "FAILED")
        return home


@pytest.fixture(scope="module")
def done(
    cluster_of_file: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AtOnce]:
    scenarios = Scenarios(cluster_of_file, tmp_path_factory.mktemp("srun"))
    used = chosen(request, dict.fromkeys(("page", "signal", "batch")))
    with on_cluster(cluster_of_file, {name: getattr(scenarios, name) for name in used}) as running:
        yield running


@pytest.mark.parametrize("scenario", ["page"])
def test_tasks_on_two_nodes_train_together_as_four_processes_of_torchrun(
    scenario: str, done: AtOnce, tmp_path: Path
) -> None:
    home = done.result(scenario)
    said = (home / "out").read_text()
    assert "(1 x 4 on each of 4 processes)" in said
    assert said.count("finished in") == 1, "only the first process speaks"
    assert [each.name for each in (home / "runs").iterdir()] == ["mine"]
    together(tmp_path, *SIX_STEPS, "run_name=mine", processes=4)
    runs = [each / "runs" / "mine" for each in (home, tmp_path)]
    assert losses(runs[0]) == losses(runs[1])
    one, other = [torch.load(run / "checkpoints/step_00000006.pt", weights_only=True)["model"] for run in runs]
    assert_same_bits(one, other, "weights")


@pytest.mark.parametrize("scenario", ["signal"])
def test_a_signal_stops_all_tasks_and_nothing_is_requeued(scenario: str, done: AtOnce) -> None:
    home, job = done.result(scenario)
    said, state = (home / "out").read_text(), status(home / "runs" / "long")
    assert state["state"] == "interrupted"
    stopped = f"stopped by SIGUSR2 after step {state['step']}, which is saved"
    assert state["error"] == stopped
    assert said.count(f"{stopped}; the same command continues") == 1
    assert said.count("SIGUSR2: finishing this step and saving") == 1
    assert (home / "runs" / "long" / "checkpoints" / f"step_{state['step']:08d}.pt").exists()
    assert said.splitlines()[-1] == "code 75"
    assert job["Restarts"] == "0"


@pytest.mark.parametrize("scenario", ["batch"])
def test_without_srun_there_is_one_process_and_torchrun_and_sweeps_work(scenario: str, done: AtOnce) -> None:
    home = done.result(scenario)
    said = (home / "out").read_text()
    each = r"steps? of \d+ images(?: \(1 x \d+ on each of (\d) processes\))?, cpu"
    assert re.findall(each, said) == ["", "2", "2", "2"], said
    assert said.count("finished in") == 4
    states = [status(run)["state"] for run in (home / "runs").iterdir() if (run / "status.json").exists()]
    assert states == ["finished"] * 4
