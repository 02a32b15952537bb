"""A stopped or killed run continues to a bit-identical result, and two runs never share a folder.

All tests use real processes. All runs have ten steps of the same configuration, in the middle of the first epoch
(1437 images, 16 per step), with drop path and a moving average so that random state and EMA matter.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from support.commands import ENVIRONMENT, SMALL, journal, losses, run, started, status, succeed
from support.evaluating import assert_same_bits
from support.paced import PACE, PACED, import_path, set_pace
from support.small_disk import small_disk
from support.waiting import PATIENCE, wait_for

TEN_STEPS = (
    *SMALL,
    "trainer.max_steps=10",
    "trainer.save_every_steps=5",
    "model.drop_path=0.1",
    "trainer.ema=true",
    "data.num_workers=1",
)


def weights(run_folder: Path, step: int = 10) -> dict[str, Any]:
    return torch.load(run_folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of ten steps without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeed(folder, *TEN_STEPS, "run_name=ten")
    return folder / "runs" / "ten"


def assert_equals(run_folder: Path, undisturbed: Path) -> None:
    """Weights, moving average, optimizer, scaler, random state and losses are equal, and each step occurs once."""
    one, other = weights(run_folder), weights(undisturbed)
    for part in ("architecture", "model", "ema", "optimizer", "scaler", "rng", "step", "loss"):
        assert_same_bits(one[part], other[part], part)
    assert losses(run_folder) == losses(undisturbed)
    assert sorted(losses(run_folder)) == list(range(1, 11))


def test_five_steps_then_sigkill_then_five_equal_ten(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "runs" / "ten"
    with started(tmp_path, *TEN_STEPS, "run_name=ten") as process:
        wait_for((folder / "checkpoints" / "step_00000005.pt").exists, "the checkpoint of step 5")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "checkpoints" / "step_00000010.pt").exists()
    assert "continuing after step 5" in succeed(tmp_path, *TEN_STEPS, "run_name=ten")
    assert_equals(folder, undisturbed)


@pytest.fixture(scope="module")
def home_of_stops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of one run that is stopped by one signal after another."""
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture
def slow(home_of_stops: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder; a step takes a third of a second until the file `pace` is deleted."""
    pace = home_of_stops / "pace"
    set_pace(pace, 0.02)
    for variable, value in {PACE: str(pace), **import_path()}.items():
        monkeypatch.setitem(ENVIRONMENT, variable, value)
    return home_of_stops


def stop(home: Path, number: signal.Signals) -> None:
    """Start or continue the run, and send it a signal after a step."""
    folder = home / "runs" / "ten"
    before = len(losses(folder))
    with started(home, *TEN_STEPS, *PACED, "run_name=ten") as process:
        wait_for(lambda: len(losses(folder)) > before, "a step")
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, out
    again = "; press Ctrl-C again to quit now" if number == signal.SIGINT else ""
    assert f"\n{number.name}: finishing this step and saving{again}\n" in out
    assert "the same command continues" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_each_signal_finishes_the_step_saves_and_exits_75(slow: Path, number: signal.Signals) -> None:
    stop(slow, number)
    folder = slow / "runs" / "ten"
    done = max(losses(folder))
    assert weights(folder, done)["step"] == done, "the step in flight is saved"
    assert status(folder)["state"] == "interrupted"
    assert journal(folder)[-1]["status"] == "KILLED"


def test_a_second_ctrl_c_stops_at_once_and_says_what_is_lost(slow: Path) -> None:
    folder = slow / "runs" / "quit"
    with started(
        slow, *TEN_STEPS, *PACED, "run_name=quit", "trainer.save_every_steps=2", "trainer.max_steps=80"
    ) as process:
        wait_for(lambda: max(losses(folder), default=0) >= 3, "three steps")
        set_pace(slow / "pace", 100)  # no step ends any more
        for answer in ("SIGINT: finishing this step and saving", "stopping at once: the steps since the checkpoint of"):
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith(answer) for line in lines), "the handler answers"
        out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out.splitlines()[-1]) == (130, "interrupted")
    assert status(folder)["state"] == "interrupted"


def test_a_run_stopped_by_signals_equals_an_undisturbed_one(slow: Path) -> None:
    folder = slow / "runs" / "ten"
    if not losses(folder):  # the previous tests were not selected
        stop(slow, signal.SIGTERM)
    set_pace(slow / "pace", 0)
    for name in ("ten", "undisturbed"):
        succeed(slow, *TEN_STEPS, *PACED, f"run_name={name}")
    assert_equals(folder, folder.with_name("undisturbed"))
    assert status(folder)["state"] == "finished"


def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "runs" / "ten"
    shutil.copytree(undisturbed, folder)
    (folder / "status.json").write_text('{"state": "running"}')
    newest = folder / "checkpoints" / "step_00000010.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    out = succeed(tmp_path, *TEN_STEPS, "run_name=ten")
    assert "step_00000010.pt is damaged" in out
    assert "continuing after step 5" in out
    assert_equals(folder, undisturbed)


def test_a_finished_run_returns_its_result(undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    out = succeed(undisturbed.parents[1], *TEN_STEPS, "run_name=ten")
    assert "finished already" in out
    assert f"{status(undisturbed)['result']['loss']:.2f}" in out
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_more_steps_continue_a_finished_run(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "runs" / "ten")
    assert "continuing after step 10" in succeed(tmp_path, *TEN_STEPS, "run_name=ten", "trainer.max_steps=11")
    assert max(losses(tmp_path / "runs" / "ten")) == 11


def test_another_configuration_is_refused_with_the_difference(undisturbed: Path) -> None:
    before = (undisturbed / "status.json").read_text()
    done = run(undisturbed.parents[1], *TEN_STEPS, "run_name=ten", "optimizer.base_lr=1e-3", "trainer.max_steps=12")
    assert done.returncode == 2
    assert "optimizer.base_lr: 0.016 -> 0.001" in done.stdout
    assert "max_steps:" not in done.stdout, "what may differ is not shown"
    assert (undisturbed / "status.json").read_text() == before


def test_a_restart_of_a_job_uses_the_configuration_that_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch script of one's own; options that may differ are those of the command."""
    experiment = tmp_path / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\noptimizer: {base_lr: 1e-3}\n")
    words = ("--config-dir", "conf", "+experiment=mine", *SMALL, "run_name=own")
    succeed(tmp_path, *words, "trainer.max_steps=2")
    experiment.write_text("# @package _global_\noptimizer: {base_lr: 5e-3}\n")
    assert "optimizer.base_lr: 0.001 -> 0.005" in run(tmp_path, *words, "trainer.max_steps=3").stdout
    monkeypatch.setitem(ENVIRONMENT, "SLURM_JOB_ID", "7")
    monkeypatch.setitem(ENVIRONMENT, "SLURM_RESTART_COUNT", "1")
    out = succeed(tmp_path, *words, "trainer.max_steps=3")
    assert "the one that it began with, not optimizer.base_lr: 0.001 -> 0.005\n" in out
    assert list(losses(tmp_path / "runs" / "own")) == [1, 2, 3]


def test_a_folder_in_use_is_refused_naming_its_process(tmp_path: Path) -> None:
    many = (*SMALL, "run_name=long")
    with started(tmp_path, *many) as process:
        wait_for(lambda: losses(tmp_path / "runs" / "long"), "the first step")
        second = run(tmp_path, *many)
        assert second.returncode == 2
        assert f"is in use by process {process.pid}" in second.stdout
        assert process.poll() is None, "the first goes on"


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "1600k") as place:
        options = (*SMALL, "trainer.max_steps=4", "trainer.save_every_steps=1", "run_name=full", "runs_dir=small")
        done = run(tmp_path, *options)
        assert done.returncode == 1
        assert "No space left on device" in done.stdout
        saved = sorted((place / "full" / "checkpoints").glob("*.pt"))
        assert len(saved) >= 1
        assert str(saved[-1]) in done.stdout, "the message names the checkpoint that is left"
        assert torch.load(saved[-1], weights_only=True)["step"] == int(saved[-1].stem.removeprefix("step_"))
        assert not list((place / "full" / "checkpoints").glob("*.tmp"))


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    options = (*SMALL, "trainer.warmup_epochs=0", "trainer.save_every_steps=1", "trainer.max_steps=9", "run_name=wild")
    done = run(tmp_path, *options, "optimizer.base_lr=1e30")
    assert done.returncode == 3, done.stdout
    folder = tmp_path / "runs" / "wild"
    step = max(losses(folder))
    assert f"not finite at step {step}" in done.stdout
    assert "digits/train[" in done.stdout, "some of the images are named"
    assert f"step_{step:08d}.pt" in done.stdout, "the last good checkpoint is named"
    assert sorted(p.name for p in (folder / "checkpoints").glob("*.pt"))[-1] == f"step_{step:08d}.pt"
    report = json.loads((folder / f"not_finite_step_{step:08d}.json").read_text())
    assert len(report["images"]) == 16
    assert status(folder)["state"] == "failed"
