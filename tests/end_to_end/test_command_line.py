"""A command-line mistake gives one message that names the option or path and lists the choices. It writes nothing.

Also: the help, and simultaneous exit of several processes.
Most commands run in this process (`run_here`), since starting a process takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semaim.config.compose import CONF
from support.commands import SMALL, run, run_together
from support.in_process import run_here
from support.mistakes import MISTAKES, assert_one_message, place_of_mistakes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working directory with all files named by the mistakes."""
    with place_of_mistakes(tmp_path) as place:
        yield place


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_gives_one_message(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    typed, words = MISTAKES[name]
    assert run_here(place, *typed.split()) == 2
    assert_one_message(capsys, words)
    assert not (place / "pwned").exists()


def test_malicious_checkpoint_runs_code_if_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    torch.load("evil.pt", weights_only=False)
    (place / "pwned").rmdir()  # raises if the checkpoint of the previous test had no effect


def test_two_processes_that_do_not_divide_the_batch_both_end(tmp_path: Path) -> None:
    done = run_together(tmp_path, *SMALL, "trainer.batch_size=15", "device=cpu")
    said = [each.stdout for each in done]
    assert [each.returncode for each in done] == [2, 2], said
    for text in said:
        assert text.count("error: trainer.batch_size=15 must be divisible by processes") == 1
        assert "2 x 1" in text
        assert "Traceback" not in text
    assert list(tmp_path.rglob("config.yaml")) == []


def test_help_names_every_group_on_one_page(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    explained = {line.split()[0] for line in lines if line.startswith("  ") and line.strip()}
    assert groups <= explained
    assert len(groups) >= 10
    assert len(lines) <= 60
    assert [line for line in lines if len(line) > 120] == []
    words = set(done.stdout.replace(",", " ").split())
    choices = {path.stem for group in groups - {"experiment"} for path in (CONF / group).glob("*.yaml")}
    assert choices - words == set(), "every choice of every group is named, but for the many experiments"
    assert list(tmp_path.iterdir()) == []
