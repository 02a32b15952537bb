"""`semaim check` reads run folders and checkpoints without changing them."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semaim.models.aim import AIM
from semaim.models.flops import cost
from support.checking import one
from support.folders import contents
from support.in_process import go


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a short pretraining: runs/run."""
    place = tmp_path_factory.mktemp("made")
    short = ("tracking=none", "evaluators=[pictures]", "trainer.max_steps=2")
    with contextlib.chdir(place):
        go(Path("runs"), "run_name=run", *short, "model.embed_dim=48")
    return place


SAME = ("run_name=run", "model.embed_dim=48", "tracking=none", "evaluators=[pictures]")


def test_progress_of_a_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = contents(made)
    finished, more = one(*SAME, "trainer.max_steps=2"), one(*SAME)
    assert (finished.problems, more.problems) == ([], [])
    assert (finished.rows[0].state, finished.rows[0].gpu_hours(1.0)) == ("finished", 0.0)
    assert more.rows[0].cells(1.0)[-1] == "finished, continues from step 2"
    anew = one(*SAME[1:]).rows[0]
    assert anew.state == "new"
    assert more.rows[0].gpu_hours(1.0) == pytest.approx(anew.gpu_hours(1.0) * (880 - 2) / 880)
    assert contents(made) == before


def test_a_run_of_another_configuration_cannot_continue(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    checked = one(*SAME, "trainer.batch_size=16", "seed=5", "trainer.log_every_steps=3")
    (problem,) = checked.problems
    assert problem.startswith(f"the run in {made}/runs/run was started with another configuration (config.yaml): ")
    assert " seed: 0 -> 5; " in problem
    assert "; trainer.batch_size: 32 -> 16; Give this run another name with run_name=..." in problem
    assert "log_every_steps" not in problem
    (row,) = checked.rows
    assert row.cells(1.0)[-1] == "finished"
    assert row.cost is not None  # the other checks still run
    assert row.cost.steps == 20 * 89


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_running_run_is_not_changed(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    lock = tmp_path / "runs" / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert one(*SAME).problems == [f"the run folder {tmp_path}/runs/run is in use: wait for that run, or stop it"]
        holder.communicate(b"\n")
    assert one(*SAME).problems == []


def test_an_encoder_is_identified_by_its_checkpoint(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = contents(made)
    real = AIM(48, 32, 4, embed_dim=48, depth=4, num_heads=3, query_depth=2)
    for task in ("knn", "linprobe", "finetune", "fewshot", "features"):
        checked = one(f"task={task}", "checkpoint=runs/run")
        assert checked.problems == []
        assert checked.rows[0].cost is not None
        assert checked.rows[0].cost.encoder_parameters == cost(real, False).encoder_parameters
    assert one("task=knn", "checkpoint=runs/run", "task.source.ema=true").problems == [
        "checkpoint=runs/run holds no moving average: its run had trainer.ema=false"
    ]
    assert one("model.embed_dim=48", "checkpoint=runs/run").problems == []  # pretraining from that checkpoint
    saved = made / "runs" / "run" / "checkpoints" / "step_00000002.pt"
    assert contents(made) == before
    checksum = saved.with_name(f"{saved.name}.sha256")
    kept = checksum.read_bytes()
    checksum.write_bytes(b"0 other")
    try:
        (problem,) = one("task=knn", f"checkpoint={saved.parent}").problems
    finally:
        checksum.write_bytes(kept)
    assert problem.startswith("every checkpoint in runs/run/checkpoints is damaged")


def test_a_large_encoder_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for task in ("knn", "finetune"):
        (row,) = one(f"task={task}", "checkpoint=random", "model=aim_huge").rows
        assert row.cost is not None
        assert row.cost.parameters > 629e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the weights alone are 2.5 GB


def test_an_encoder_of_timm() -> None:
    checked = one("task=knn", "checkpoint=timm:vit_tiny_patch16_224", "data.image_size=224", "data.patch_size=16")
    assert checked.problems == []
    assert checked.rows[0].cost is not None
    assert checked.rows[0].cost.parameters == 5_524_416 - 197 * 192  # without positions
    (problem,) = one("task=knn", "checkpoint=timm:vit_tiny_patch16_224").problems
    assert "is for images of 224x224, the data are of 32x32" in problem
