"""`extend=runs/<name> trainer.epochs=...`: a new run goes on from the state of a finished one, which stays as it is.

All runs have 53 images, so three steps in an epoch, with drop path and a moving average so that random state and EMA
matter.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError
from semaim.preflight.command_line import check_command_line
from semaim.runs.folder import RunFolder
from semaim.training.extension import check_extension
from semaim.training.optimizers import lr_at, scaled_lr
from support.commands import ENVIRONMENT, SMALL, journal, losses, run, started, succeed
from support.evaluating import assert_same_bits
from support.in_process import go, run_here
from support.paced import PACE, PACED, import_path, set_pace
from support.tracked import delivery_state, mlflow_client
from support.waiting import wait_for

TWO_EPOCHS = (
    *SMALL,
    *PACED,
    "data.source.val_fraction=0.97",
    "trainer.epochs=2",
    "trainer.ema=true",
    "trainer.save_every_steps=1",
    "trainer.keep_checkpoints=1",
    "model.drop_path=0.1",
)
FOUR = "trainer.epochs=4"
KNN = "task.evaluators.knn.max_queries=20"


@pytest.fixture(autouse=True)
def processes_import_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in import_path().items():
        monkeypatch.setitem(ENVIRONMENT, variable, value)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished run, and with one that extends it."""
    home = tmp_path_factory.mktemp("home")
    go(home / "runs", *TWO_EPOCHS, "run_name=two")
    go(home / "runs", f"extend={home}/runs/two/", FOUR, "run_name=four")
    return home


def checkpoint(run_folder: Path, step: int = 12) -> dict[str, Any]:
    return torch.load(run_folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)


def checksums(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_equal_runs(one: Path, other: Path) -> None:
    """Losses of all steps, and the last state."""
    assert losses(one) == losses(other)
    these, those = checkpoint(one), checkpoint(other)
    for part in ("architecture", "model", "ema", "optimizer", "scaler", "rng", "step", "loss"):
        assert_same_bits(these[part], those[part], part)


def test_it_equals_the_state_of_the_old_run_under_the_new_schedule(home: Path) -> None:
    runs = home / "runs"
    (runs / "by_hand").mkdir()
    shutil.copytree(runs / "two" / "checkpoints", runs / "by_hand" / "checkpoints")
    go(runs, *TWO_EPOCHS, FOUR, "run_name=by_hand")
    assert sorted(losses(runs / "four")) == [7, 8, 9, 10, 11, 12]
    assert_equal_runs(runs / "four", runs / "by_hand")
    rates = [line["metrics"]["train/lr"] for line in journal(runs / "four") if "train/lr" in line.get("metrics", ())]
    base = checkpoint(runs / "two", 6)["config"]["optimizer"]
    peak = scaled_lr(base["base_lr"], 16)
    assert rates == [lr_at(step, peak, base["min_lr"], 3, 12) for step in range(6, 12)]


def test_it_has_the_options_and_the_cost_of_the_old_run(home: Path) -> None:
    two, four = checkpoint(home / "runs" / "two", 6), checkpoint(home / "runs" / "four")
    assert four["config"]["trainer"] == two["config"]["trainer"] | {"epochs": 4}
    assert four["config"]["model"] == two["config"]["model"]
    assert four["device_seconds"] > two["device_seconds"]
    assert four["flops"] == 2 * two["flops"] > 0
    assert four["data_position"]["epochs"] == 4


def test_the_old_run_does_not_change_and_the_new_one_says_what_it_does(home: Path) -> None:
    before = checksums(home / "runs" / "two")
    out = succeed(home, "extend=runs/two", "trainer.epochs=3")
    assert checksums(home / "runs" / "two") == before
    assert "run folder: runs/two_extended_trainer.epochs-3\n" in out
    assert "continuing after step 6 of 9: 3 steps left, about " in out
    assert "extends runs/two, which stays as it is" in out
    last, now = (lr_at(step, scaled_lr(0.016, 16), 0.0, 3, total) for step, total in ((5, 6), (6, 9)))
    assert f"the learning rate goes from {last:.3g} to {now:.3g}: from here on it follows the schedule of 3" in out
    assert "finished already" in succeed(home, "extend=runs/two", "trainer.epochs=3")


def test_killed_and_continued_it_equals_an_undisturbed_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (f"extend={home}/runs/two", FOUR, f"runs_dir={tmp_path}", "run_name=killed")
    set_pace(tmp_path / "pace", 0.05)
    monkeypatch.setitem(ENVIRONMENT, PACE, str(tmp_path / "pace"))
    with started(home, *command) as process:
        wait_for((tmp_path / "killed" / "checkpoints" / "step_00000008.pt").exists, "the checkpoint of step 8")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert not (tmp_path / "killed" / "checkpoints" / "step_00000012.pt").exists()
    set_pace(tmp_path / "pace", 0)
    out = succeed(home, *command)
    assert "extends " not in out, "its own checkpoint comes first"
    assert_equal_runs(tmp_path / "killed", home / "runs" / "four")


def test_a_sweep_extends_several_runs(home: Path) -> None:
    shutil.copytree(home / "runs" / "two", home / "runs" / "second")
    assert run_here(home, "-m", "extend=runs/two,runs/second", "trainer.epochs=5") == 0
    for name in ("two", "second"):
        assert sorted(losses(home / "runs" / f"{name}_extended_trainer.epochs-5"))[0] == 7


def test_it_evaluates_at_its_start_and_can_have_other_evaluators(home: Path) -> None:
    folder = go(home / "runs", f"extend={home}/runs/two", FOUR, "evaluators=[knn]", KNN, "run_name=measured")
    result = RunFolder(folder).status()["result"]
    assert sorted(RunFolder(folder).evaluations(), key=int) == ["6", "12"]
    assert {"online/knn_10_mean_before", "online/knn_10_mean_after"} <= result.keys()


def test_mlflow_names_and_links_the_old_run(tmp_path: Path) -> None:
    tracked = ("tracking=mlflow", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    one = go(tmp_path / "runs", *TWO_EPOCHS, *tracked, "trainer.epochs=1", "run_name=one")
    two = go(tmp_path / "runs", f"extend={one}", "trainer.epochs=2")
    started_from = go(tmp_path / "runs", *TWO_EPOCHS, *tracked, f"checkpoint={one}", "run_name=weights")
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    old = delivery_state(one)["run_id"]
    for folder, tag, line in (
        (two, "extended_from", "* extends: [`one`](#/experiments/1/runs/{old}) (its whole state"),
        (started_from, "started_from", "* started from: [`one`](#/experiments/1/runs/{old}) (its weights alone)"),
    ):
        tags = client.get_run(delivery_state(folder)["run_id"]).data.tags
        assert (tags[tag], tags[f"{tag}.run_id"]) == ("one", old)
        assert line.format(old=old) in tags["mlflow.note.content"]


def test_without_the_old_run_the_whole_command_shows_the_result(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs" / "two", tmp_path / "runs" / "gone")
    go(tmp_path / "runs", f"extend={tmp_path}/runs/gone", FOUR, "run_name=four")
    (again,) = [line["tags"]["command"] for line in journal(tmp_path / "runs" / "four") if "command" in str(line)][:1]
    shutil.rmtree(tmp_path / "runs" / "gone")
    assert "finished already" in succeed(tmp_path, *shlex.split(again)[2:])
    refused = run(tmp_path, f"extend={tmp_path}/runs/gone", FOUR)
    assert (refused.returncode, "gone does not exist" in refused.stdout) == (2, True)


def refusal(folder: Path, *options: str) -> str:
    try:
        spec = compose_run_spec([f"extend={folder}", f"runs_dir={folder.parent}", *options])
        check_extension(RunFolder(Path(spec.config["run_dir"])), spec.config)
    except UserError as error:
        return str(error)
    raise AssertionError("it is accepted")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("trainer.epochs=2",), "has trained for 2 already; give more, such as trainer.epochs=4"),
        ((), "trainer.epochs=2: extend="),
        ((FOUR, "model=aim_small"), "model.depth: "),
        ((FOUR, "optimizer.weight_decay=0.3"), "optimizer.weight_decay: 0.05 -> 0.3\nOnly trainer.epochs, "),
        ((FOUR, "permutation=raster"), "type checkpoint="),
        ((FOUR, "data.patch_size=8"), "data.patch_size: 4 -> 8"),
        ((FOUR, "checkpoint=runs/x"), "checkpoint=<run folder> takes its weights alone"),
        ((FOUR, "task=knn"), "continues the training of a pretraining"),
    ],
)
def test_what_cannot_be_extended_is_refused(home: Path, options: tuple[str, ...], message: str) -> None:
    assert message in refusal(home / "runs" / "two", *options)


def test_a_run_that_is_not_finished_is_refused(home: Path, tmp_path: Path) -> None:
    short = go(tmp_path, *TWO_EPOCHS, "trainer.max_steps=4", "run_name=short")
    assert f"semaim again {short} trainer.max_steps=null" in refusal(short, FOUR)
    RunFolder(short).set_status("interrupted")
    assert f"is not finished (interrupted): type its own command, which continues it. semaim again {short}" in refusal(
        short, FOUR
    )
    bare = tmp_path / "bare"
    shutil.copytree(home / "runs" / "two", bare)
    shutil.rmtree(bare / "checkpoints")
    assert "has no checkpoints any more" in refusal(bare, FOUR)
    assert "does not exist" in refusal(tmp_path / "none", FOUR)
    (tmp_path / "empty").mkdir()
    assert "is not the folder of a run" in refusal(tmp_path / "empty", FOUR)


def test_semaim_check_refuses_it_too(home: Path) -> None:
    report = check_command_line([f"extend={home}/runs/two", "trainer.epochs=1", f"runs_dir={home}/runs"])
    assert [problem for problem in report.problems if "has trained for 2 already" in problem] == report.problems
