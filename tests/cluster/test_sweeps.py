"""Sweeps on a real SLURM: submitted as one array, watched, cancelled, tried again, and followed by evaluations."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from semaim.core import slurm_job
from support.commands import status, sweep_folder, wait_for
from support.slurm import Cluster
from support.slurm_runs import ON_CPU, SMALL_ANYHOW, JobRun, subprocess_run
from support.undisturbed import shown

pytestmark = pytest.mark.slow
SHORT = (*SMALL_ANYHOW, *ON_CPU, "trainer.max_steps=4", "sweep.check=false")
LONG = (*SMALL_ANYHOW, *ON_CPU, "trainer.save_every_steps=20", "tracking=mlflow")


def say(cluster: Cluster, home: Path, *command: str, expect: int = 0) -> str:
    """Run a command of semaim's; what it printed."""
    done = subprocess_run([sys.executable, "-m", *command], home, cluster.environment)
    assert done.returncode == expect, done.stdout
    return done.stdout


def points(home: Path) -> list[dict[str, Any]]:
    return json.loads((sweep_folder(home) / "sweep.json").read_text())["points"]


def results(home: Path) -> list[dict[str, str]]:
    with open(sweep_folder(home) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_array_of_eight_of_which_two_fail(cluster: Cluster, tmp_path: Path) -> None:
    """Also: all start at the same moment with a new store, and each is in the right experiment, under the sweep."""
    options = ("seed=0,1,2,3,4,5,-1,-2", "tracking.experiment=eight", "tracking.flush_seconds=60")
    said = say(cluster, tmp_path, "semaim.run", "-m", *SHORT, *options, expect=1)
    found = results(tmp_path)
    assert [row["state"] for row in found] == ["finished"] * 6 + ["failed"] * 2
    assert all(float(row["loss"]) > 0 for row in found[:6])
    assert [row["error"] for row in found[6:]] == [f"seed={seed} must not be negative" for seed in (-1, -2)]
    arrays = {point["job"].split("_")[0] for point in points(tmp_path)}
    assert len(arrays) == 1
    assert [point["job"].split("_")[1] for point in points(tmp_path)] == [str(number) for number in range(8)]
    table = said[said.rindex("result, progress or reason") :]
    for seed in range(6):
        assert re.search(rf"\nseed={seed} +{arrays.copy().pop()}_{seed} +finished +loss [\d.]+", table)
    for seed in (-1, -2):
        assert re.search(rf"\nseed={seed} +\S+ +failed +seed={seed} must not be negative", table)
    assert "error: 2 of 8 runs did not finish" in table

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if client.search_runs([each.experiment_id])]
    assert experiment.name == "eight"
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 6
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert parent.info.status == "FAILED"
    losses = [float(row["loss"]) for row in found[:6]]
    summary = {"sweep/finished": 6, "sweep/failed": 2, "sweep/best_loss": min(losses)}
    assert summary.items() <= parent.data.metrics.items()
    assert parent.data.metrics["sweep/mean_loss"] == pytest.approx(sum(losses) / 6)
    said = parent.data.tags["mlflow.note.content"]
    assert said.startswith("**Sweep** of 8 runs over seed = `0`, `1`, `2`, `3`, `4`, `5`, `-1`, `-2`")
    for seed, loss in enumerate(losses):
        assert f"| `seed={seed}` | finished | {loss:.4g} |" in said
    assert "| `seed=-1` | failed: seed=-1 must not be negative |" in said
    assert {run.data.tags["slurm.job"] for run in children} == {f"{arrays.copy().pop()}_{i}" for i in range(6)}
    assert {run.data.tags["slurm.array_index"] for run in children} == {str(i) for i in range(6)}
    assert all(re.fullmatch("n[12]", run.data.tags["slurm.nodes"]) for run in children)
    assert {run.data.tags["slurm.restarts"] for run in children} == {"0"}


def test_submitted_left_watched_cancelled_and_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    held = "+hydra.launcher.additional_parameters.begin=now+1hour"
    options = (*LONG, "sweep.check=false", "sweep.wait=false", "run_name=held", "trainer.max_steps=3")
    said = say(cluster, tmp_path, "semaim.run", *options, held)
    waits = JobRun(cluster, tmp_path, "held", ())
    assert f"submitted 1 job (slurm {waits.job})" in said
    assert "python -m semaim.status --watch runs/sweep_held" in said
    assert re.search(
        r"\nheld +\d+ +pending +BeginTime", say(cluster, tmp_path, "semaim.sweeps.status", "runs/sweep_held")
    )

    options = (*LONG, "sweep.check=false", "sweep.wait=false", "run_name=long", "trainer.max_steps=1700")
    say(cluster, tmp_path, "semaim.run", *options)
    run = JobRun(cluster, tmp_path, "long", ())
    run.wait_for_step(30)
    progress = r"\nlong +\d+ +running +step \d+/1700, [\d.e+]+ images/s, ETA .+"
    for where in ("runs/sweep_long", "runs/long"):
        assert re.search(progress, say(cluster, tmp_path, "semaim.sweeps.status", where))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert re.search(progress, say(cluster, elsewhere, "semaim.sweeps.status", str(run.sweep)))
    first = run.job
    assert "1 of 1 runs are finished or under way" in say(cluster, tmp_path, "semaim.run", *options)
    assert run.job == first, "a live job is not doubled"

    for name, detail in (("long", "CANCELLED: stopped by SIGTERM after step"), ("held", "CANCELLED")):
        assert re.search(
            rf"\n{name} +\d+ +killed +{detail}", say(cluster, tmp_path, "semaim.sweeps.cancel", f"runs/sweep_{name}")
        )
    assert shown(tmp_path)["long"][1] == "KILLED"
    stopped = run.stops()[-1]
    retried = ("timeout_min=60", "cpus_per_task=1")
    said = say(cluster, tmp_path, "semaim.sweeps.retry", "--failed", "runs/sweep_long", *retried)
    assert run.job != first
    run.wait_for_step(stopped + 1)
    assert run.continuations() == [stopped]
    assert "there is no launcher option memory" in say(
        cluster, tmp_path, "semaim.sweeps.retry", "--failed", "runs/sweep_long", "memory=3", expect=2
    )
    cluster.run("scancel", run.job)


def test_status_without_accounting_of_a_job_killed_for_good(cluster: Cluster, tmp_path: Path) -> None:
    options = (*LONG, "sweep.check=false", "sweep.wait=false", "sweep.restarts=0", "run_name=lost")
    say(cluster, tmp_path, "semaim.run", *options, "trainer.max_steps=1700")
    run = JobRun(cluster, tmp_path, "lost", ())
    run.wait_for_step(5)
    os.kill(run.process(), signal.SIGKILL)
    run.wait_until_over()
    commands = tmp_path / "without_sacct"
    commands.mkdir()
    for name in ("squeue", "scontrol", "sinfo", "scancel", "git"):
        (path,) = [Path("/usr/bin") / name]
        (commands / name).symlink_to(path)
    asked = time.monotonic()
    done = subprocess_run(
        [sys.executable, "-m", "semaim.sweeps.status", "runs/sweep_lost"],
        tmp_path,
        cluster.environment | {"PATH": str(commands)},
    )
    assert time.monotonic() - asked < 60
    assert done.returncode == 1
    assert re.search(r"\nlost +\d+ +failed +n[12]: task 0: Killed", done.stdout), done.stdout
    assert shown(tmp_path)["lost"][1] in ("KILLED", "FAILED")
    assert status(run.folder)["state"] in ("failed", "vanished")
    again = say(cluster, tmp_path, "semaim.sweeps.status", "runs/sweep_lost", expect=1)
    assert again == done.stdout


def test_evaluations_depend_on_their_pretraining(cluster: Cluster, tmp_path: Path) -> None:
    """Of the second, whose loss becomes infinite, none is made."""
    options = (*SHORT, "then=[knn,linprobe]", "optimizer.base_lr=1e-3,1e30", "trainer.max_steps=4")
    said = say(cluster, tmp_path, "semaim.run", "-m", *options, expect=1)
    found = results(tmp_path)
    assert [row["state"] for row in found] == ["finished"] * 3 + ["failed", "killed", "killed"]
    assert "is not finite" in found[3]["error"]
    assert found[4]["error"] == found[5]["error"] == "CANCELLED: DependencyNeverSatisfied"
    assert "error: 3 of 6 runs did not finish" in said
    by_folder = {point["run_dir"]: point["job"] for point in points(tmp_path)}
    assert len({job.split("_")[0] for job in by_folder.values()}) == 3, "three arrays"

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = [each.experiment_id for each in client.search_experiments()]
    runs = {run.info.run_name: run for run in client.search_runs(ids)}
    names = [Path(point["run_dir"]).name for point in points(tmp_path)]
    parents = [runs[name].data.tags["mlflow.parentRunId"] for name in names[:3]]
    assert parents == [runs[sweep_folder(tmp_path).name].info.run_id, *[runs[names[0]].info.run_id] * 2]
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    words = ["semaim.run", "task=knn", f"checkpoint={points(tmp_path)[0]['run_dir']}", "tracking=none", "run_name=knn"]
    say(cluster, by_hand, *words)
    assert status(by_hand / "runs" / "knn")["result"] == status(Path(points(tmp_path)[1]["run_dir"]))["result"]


def test_controller_that_does_not_answer_makes_nobody_dead(cluster: Cluster, tmp_path: Path) -> None:
    options = (*LONG, "sweep.check=false", "sweep.wait=false", "run_name=alive", "trainer.max_steps=1700")
    say(cluster, tmp_path, "semaim.run", *options)
    run = JobRun(cluster, tmp_path, "alive", ())
    run.wait_for_step(3)
    nobody = tmp_path / "nobody.conf"
    port = cluster.port
    nobody.write_text((cluster.folder / "slurm.conf").read_text().replace(f"SlurmctldPort={port}", "SlurmctldPort=9"))
    silent = cluster.environment | {"SLURM_CONF": str(nobody)}
    done = subprocess_run([sys.executable, "-m", "semaim.sweeps.status", "runs/sweep_alive"], tmp_path, silent)
    assert re.search(r"\nalive +\d+ +unknown +SLURM does not answer; the run folder says: running", done.stdout)
    assert done.returncode == 0
    assert status(run.folder)["state"] == "running"
    wait_for(lambda: run.step() > 5, "steps")
    cluster.run("scancel", run.job)


def test_job_cancelled_on_its_way_back_into_the_queue_is_over(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts say REQUEUED of it for ever, and after some minutes they alone remember it."""
    (tmp_path / "job.sh").write_text("#!/bin/bash\ntrap 'sleep 3; exit' TERM\nwhile true; do sleep 0.1; done\n")
    job = str(cluster.sbatch("-o", "/dev/null", "job.sh", cwd=tmp_path))
    cluster.wait_for_state(job, "RUNNING")
    time.sleep(2)  # until the script listens
    cluster.run("scontrol", "requeue", job)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    wait_for(lambda: [start["State"] for start in cluster.sacct(int(job))] == ["REQUEUED"], "the accounts")
    monkeypatch.setattr(slurm_job, "_from_controller", lambda _: {})
    assert slurm_job.look([job])[job].state == "over"


def test_check_asks_the_real_sinfo(cluster: Cluster, tmp_path: Path) -> None:
    wrong = ("hydra.launcher.nodes=3", "hydra.launcher.partition=main", *ON_CPU, *SMALL_ANYHOW, "tracking=none")
    said = say(cluster, tmp_path, "semaim.run", *wrong, expect=2)
    assert "hydra.launcher.nodes=3: partition main has 2" in said
    assert not list((tmp_path / "runs").glob("*/sweep.json")), "nothing was submitted"
    assert not cluster.squeue()
