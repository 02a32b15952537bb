"""MLflow contains exactly the content of the run folder: everything, once, with the correct status.

Real runs with real MLflow stores (SQLite files), read with MLflow's own client: finished and failed runs, four runs at
once, tags, artifacts and images. test_delivery_again.py has killed and continued runs, and repeated deliveries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf
from PIL import Image

from semaim.config.naming import flatten
from semaim.core import locks
from semaim.core.formatting import program
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.tracking.delivery import Delivery, parameters
from semaim.tracking.mlflow import NoTracking
from semaim.tracking.store import SQLITE, failure_reason
from support.commands import SMALL, journal, started, status
from support.in_process import run_here
from support.small_disk import small_disk
from support.tracked import (
    TINY,
    assert_shows_all,
    delivery_state,
    mlflow_client,
    only_run,
    points_shown,
)
from support.waiting import PATIENCE

HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"


def test_finished_run_is_complete(finished: tuple[Path, Any], tmp_path: Path) -> None:
    run_folder, client = finished
    shown = only_run(client, "trials")
    assert shown.info.run_id == delivery_state(run_folder)["run_id"]
    assert_shows_all(client, run_folder, "FINISHED")
    losses = points_shown(client, shown.info.run_id)["train/loss"]
    assert [step for step, _, _ in losses] == [2, 4, 6]
    assert losses[-1][1] == status(run_folder)["result"]["loss"]
    for name in ("config.yaml", "environment.json"):
        fetched = Path(client.download_artifacts(shown.info.run_id, name, str(tmp_path)))
        assert fetched.read_bytes() == (run_folder / name).read_bytes()
        assert len(fetched.read_bytes()) > 500
    (start,) = json.loads((run_folder / "environment.json").read_text())["starts"]
    found = {"run_folder": str(run_folder), "commit": start["commit"], "dirty": str(start["dirty"])}
    found |= {"host": start["host"], "device": start["device"], "permutation": "attention_center", "task": "pretrain"}
    found["command"] = program("run", *TINY, "trainer.max_steps=6", "tracking.experiment=trials")
    assert {name: value for name, value in found.items() if value != "None"}.items() <= shown.data.tags.items()
    said = shown.data.tags["mlflow.note.content"]
    assert f"```bash\n{found['command']}\n```" in said
    assert "**train/loss, train/grad_norm**" in said
    assert "online/knn" not in said  # there is no such evaluator
    assert f"| loss | {status(run_folder)['result']['loss']:.4g} |" in said
    experiment = client.get_experiment(shown.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_parameters_are_the_flattened_configuration(finished: tuple[Path, Any]) -> None:
    run_folder, client = finished
    shown = only_run(client, "trials").data.params
    config = OmegaConf.to_container(OmegaConf.load(run_folder / "config.yaml"))
    assert shown == {key: str(value) for key, value in flatten(config).items()}
    assert len(shown) >= 60
    assert shown["model.embed_dim"] == "96"
    assert shown["optimizer.optimizer.betas"] == "[0.9, 0.95]"
    assert shown["trainer.max_steps"] == "6"
    assert shown["permutation._target_"] == "semaim.permutations.AttentionCenter"
    assert [key for key in shown if set(key) & set("[],=")] == []


def test_long_values_are_cut_with_a_hint() -> None:
    ks = list(range(2000))
    cut = parameters({"task": {"ks": ks, "name": "x" * 6000}})
    assert cut["task.name"] == "x" * 6000
    assert 5900 < len(cut["task.ks"]) <= 6000
    assert cut["task.ks"].endswith("... (cut; see config.yaml)")
    assert str(ks).startswith(cut["task.ks"].partition("... (cut")[0])


def test_failing_run_ends_failed(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ("optimizer.base_lr=1e30", "trainer.warmup_epochs=0", "run_name=diverging", "trainer.max_steps=50")
    assert run_here(tmp_path, *TINY, *diverging) == 3
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "not finite at step" in err
    assert "Traceback" not in err
    run_folder = tmp_path / "runs" / "diverging"
    assert status(run_folder)["state"] == "failed"
    assert_shows_all(store, run_folder, "FAILED")


@pytest.mark.slow
def test_four_runs_at_once_on_a_new_store_all_arrive(tmp_path: Path) -> None:
    options = (*TINY, "trainer.max_steps=2", "tracking.experiment=together", "tracking.flush_seconds=200")
    with ExitStack() as stack:
        processes = [stack.enter_context(started(tmp_path, *options, f"run_name=run{i}")) for i in range(4)]
        for process in processes:
            said = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == 0, said
            assert "has not got" not in said
    client = mlflow_client(f"{SQLITE}{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("together").experiment_id])
    assert sorted(shown.info.run_name for shown in found) == ["run0", "run1", "run2", "run3"]
    assert client.search_runs(["0"]) == []  # MLflow's experiment "Default"
    for number in range(4):
        assert_shows_all(client, tmp_path / "runs" / f"run{number}", "FINISHED")


def test_tags_artifacts_and_the_parent_arrive_in_order(finished: tuple[Path, Any], store: Any, tmp_path: Path) -> None:
    parent, child = tmp_path / "runs" / "parent", tmp_path / "runs" / "child"
    for folder in (parent, child):
        shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("mlflow.json", "metrics.jsonl"))
        journal = Journal(folder / "metrics.jsonl")
        journal.log(1, {"a": 1.0})
        if folder == child:
            journal.tags({"pretrained.run": "x", "pretrained.seed": "3"})
            (child / "confusion.csv").write_text("1,2\n")
            journal.artifact("confusion.csv")
            (child / "pictures").mkdir()
            (child / "pictures" / "one.txt").write_text("1\n")
            journal.artifact("pictures/one.txt")
            journal.artifact("gone.csv")  # a deleted file
            journal.tags({"pretrained.seed": "4"})
        journal.log(2, {"a": 2.0})
        journal.status("FINISHED")
        journal.close()
    config = OmegaConf.load(child / "config.yaml")
    config.parent_run = str(parent)
    OmegaConf.save(config, child / "config.yaml")
    uri = f"{SQLITE}{tmp_path}/mlflow.db"
    Delivery(RunFolder(parent), uri, "family")  # started, nothing delivered yet
    for _ in range(2):  # the second time from the start, as after a crash before the position was saved
        assert Delivery(RunFolder(child), uri, "family").deliver() == 2
        (child / "mlflow.json").write_text(json.dumps(delivery_state(child) | {"sent": 0}))
    shown = store.get_run(delivery_state(child)["run_id"])
    assert shown.data.tags["mlflow.parentRunId"] == delivery_state(parent)["run_id"]
    assert (shown.data.tags["pretrained.run"], shown.data.tags["pretrained.seed"]) == ("x", "4")
    artifacts = {file.path for file in store.list_artifacts(shown.info.run_id)}
    assert artifacts == {"config.yaml", "confusion.csv", "pictures"}
    assert [file.path for file in store.list_artifacts(shown.info.run_id, "pictures")] == ["pictures/one.txt"]
    for folder in (parent, child):
        assert_shows_all(store, folder, "FINISHED")


def test_images_over_steps_have_the_paths_that_mlflow_expects(
    finished: tuple[Path, Any], store: Any, tmp_path: Path
) -> None:
    """Same files as MLflow's own `log_image`, except for a random part of their names; none occurs twice."""
    folder = tmp_path / "runs" / "pictured"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("mlflow.json", "metrics.jsonl", "pictures"))
    (folder / "pictures").mkdir()
    lines = Journal(folder / "metrics.jsonl")
    for step in (0, 20):
        Image.new("RGBA", (2000, 1000), (step, 100, 200, 128)).save(folder / "pictures" / f"{step}.png")
        lines.image("pictures/one row", step, f"pictures/{step}.png")
    lines.image("gone", 1, "pictures/1.png")  # a deleted file
    lines.log(20, {"a": 1.0})
    lines.status("FINISHED")
    lines.close()
    uri = f"{SQLITE}{tmp_path}/mlflow.db"
    for _ in range(2):  # the second time from the start, as after a crash before the position was saved
        assert Delivery(RunFolder(folder), uri, "pictured").deliver() == 1
        run_id = delivery_state(folder)["run_id"]
        (folder / "mlflow.json").write_text(json.dumps(delivery_state(folder) | {"sent": 0}))
    there = {Path(file.path).name for file in store.list_artifacts(run_id, "images")}
    for line in [line for line in journal(folder) if "image" in line][:2]:
        name = f"pictures~one row+step+{line['step']}+timestamp+{line['time']}+journal"
        assert {f"{name}.png", f"{name}+compressed.webp"} <= there
        sent = Path(store.download_artifacts(run_id, f"images/{name}.png", str(tmp_path)))
        assert sent.read_bytes() == (folder / line["image"]["file"]).read_bytes()
        with Image.open(store.download_artifacts(run_id, f"images/{name}+compressed.webp", str(tmp_path))) as small:
            assert (small.format, small.size) == ("WEBP", (1000, 500))
    assert len(there) == 4
    theirs = store.create_run(only_run(store, "pictured").info.experiment_id).info.run_id
    store.log_image(theirs, Image.open(folder / "pictures" / "20.png"), key="pictures/one row", step=20, timestamp=7)
    names = sorted(Path(file.path).name for file in store.list_artifacts(theirs, "images"))
    assert [name.rsplit("+", 1 + ("compressed" in name))[0] for name in names] == 2 * [
        "pictures~one row+step+20+timestamp+7"
    ]
    assert store.get_run(theirs).data.tags["mlflow.loggedImages"] == "True"
    assert store.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"
    assert_shows_all(store, folder, "FINISHED")


def test_a_process_that_holds_the_delivery_is_not_waited_for_without_end(
    tmp_path: Path, finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    shutil.copytree(finished[0], tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run" / ".mlflow.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match=r"has held .*\.mlflow\.lock for 0 s \(sending of .*run to MLflow\)"):
            Delivery(RunFolder(tmp_path / "run"), f"{SQLITE}{tmp_path}/mlflow.db").deliver()
        process.kill()


def test_ctrl_c_during_the_last_delivery_does_not_hide_why_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NoTracking, "finish", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    options = (*SMALL, "optimizer.base_lr=1e30", "trainer.warmup_epochs=0", "run_name=run")
    assert run_here(tmp_path, *options) == 130
    said = capsys.readouterr().err
    assert re.search(r"the run ends as failed: the loss of .* is not finite at step .*\ninterrupted\n$", said)
    assert status(tmp_path / "runs" / "run")["state"] == "failed"


def test_the_reason_of_a_full_store_is_one_line(
    tmp_path: Path, finished: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished[0], folder.path)
    with small_disk(tmp_path / "small", "4m") as place:
        delivery = Delivery(folder, f"{SQLITE}{place}/mlflow.db")
        delivery.deliver()
        (place / "filler").write_bytes(bytes(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize))
        with closing(Journal(folder.journal)) as journal:
            for step in range(1000, 3000):
                journal.log(step, {f"x{n}": 1.0 for n in range(9)})
        with pytest.raises(MlflowException) as told:
            delivery.deliver()
    assert failure_reason(SQLITE, told.value) == "database or disk is full"
    assert "Traceback" not in "".join(capfd.readouterr())
