"""`semaim again`: the command of a run or sweep, with changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.config.stored_command import with_changes, words_of
from semaim.errors import UserError
from support.commands import SMALL
from support.in_process import go


def stored(folder: Path, command: str) -> Path:
    """A run folder with what `semaim again` reads of it."""
    folder.mkdir(parents=True)
    lines = [{"time": 1, "tags": {"command": "semaim run seed=9"}}, {"time": 2, "tags": {"command": command}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["again", "--print", *words]) in (0, None)
    return capsys.readouterr().out.strip()


def test_changes_replace_options_and_nothing_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(stored(tmp_path / "run", "semaim run --config-dir my +experiment=a 'then=[knn]' trainer.epochs=2 seed=1"))
    kept = "semaim run --config-dir my +experiment=a 'then=[knn]'"
    assert printed(capsys, run) == f"{kept} trainer.epochs=2 seed=1", "of the last start"
    assert printed(capsys, run, "trainer.epochs=5", "permutation=raster") == (
        f"{kept} seed=1 trainer.epochs=5 permutation=raster"
    )
    assert printed(capsys, run, "-m", "seed=1,2") == (
        "semaim run --config-dir my --multirun +experiment=a 'then=[knn]' trainer.epochs=2 seed=1,2"
    )


def test_an_extended_run_gets_a_new_name_with_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "semaim run trainer.epochs=4 run_name=a_extended_trainer.epochs-4 extend=runs/a"
    run = str(stored(tmp_path / "run", command))
    assert printed(capsys, run) == command
    assert printed(capsys, run, "trainer.epochs=8") == "semaim run extend=runs/a trainer.epochs=8"


def test_a_given_name_is_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(stored(tmp_path / "run", "semaim run run_name=mine trainer.max_steps=5"))
    assert printed(capsys, run, "trainer.max_steps=null") == "semaim run run_name=mine trainer.max_steps=null"
    assert printed(capsys, run, "permutation=raster") == "semaim run trainer.max_steps=5 permutation=raster"


def test_weights_of_another_architecture_name_the_command_that_has_it(tmp_path: Path) -> None:
    folder = go(tmp_path, *SMALL, "run_name=narrow", "trainer.max_steps=1")
    with pytest.raises(Exception, match="is of another architecture than the model") as raised:
        go(tmp_path, *SMALL, f"checkpoint={folder}", "model.embed_dim=64", "run_name=wide")
    assert str(raised.value).partition("\nfull_key")[0].endswith(f" again {folder} checkpoint={folder}')")


@pytest.mark.parametrize(
    "command",
    ["python -m semaim.run -m a=1", "torchrun --nproc-per-node=8 -m semaim.run -m a=1", "semaim run -m a=1"],
)
def test_the_options_of_each_way_to_start(command: str) -> None:
    assert words_of(command, "it") == ["-m", "a=1"]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"it was not started with semaim run, but with: python train\.py"):
        words_of("python train.py", "it")
    for folder, message in ((tmp_path / "none", "does not exist"), (tmp_path, "is not the folder of a run")):
        assert main(["again", str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_a_value_of_a_flag_is_no_option() -> None:
    assert with_changes(["--config-dir", "a=b", "a=1", "+b=2"], ["a=3", "b=4"]) == ["--config-dir", "a=b", "a=3", "b=4"]
