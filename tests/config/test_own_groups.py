"""Group files in a configuration folder of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.config.messages import explain
from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError


def test_a_group_file_cannot_add_an_option_that_nothing_reads(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    own = tmp_path / "model" / "own.yaml"
    own.write_text("# @package _global_\ndefaults: [aim_tiny@model, _self_]\nmodel: {depth: 2}\n")
    assert compose_run_spec(["model=own"], [f"file://{tmp_path}"]).config["model"]["depth"] == 2
    own.with_name("other.yaml").write_text(own.read_text() + "colour: red\n")
    with pytest.raises(UserError, match="there is no option colour"):
        compose_run_spec(["model=other"], [f"file://{tmp_path}"])


def test_a_task_of_ones_own_may_refer_to_an_option_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text(
        '# @package _global_\nnamed_after: [task]\nlimit: 3\ntask: {_target_: my.Task, limit: "${limit}"}\n'
    )
    assert compose_run_spec(["task=mine", "limit=4"], [f"file://{tmp_path}"]).config["limit"] == 4


GLOBAL = "# @package _global_\n"


@pytest.mark.parametrize(("content", "message"), [
    (GLOBAL + "trainer: {epoch: 3}\n", "there is no option trainer.epoch. did you mean trainer.epochs"),
    (GLOBAL + "task: {evaluators: {knn: {every: 3}}}\n", "there is no option task.evaluators.knn.every."),
    (GLOBAL + "trainers: {epochs: 3}\n", "there is no option trainers. did you mean trainer or "),
    (GLOBAL + "3: 4\n", "there is no option 3."),
    (GLOBAL + "trainer: 3\n", "trainer=3: trainer is a group of options, set these: trainer.epochs"),
    (GLOBAL + "seed: -3\n", "seed=-3: seed must be a whole number, not negative, such as 0"),
    ("trainer: {epochs: 3}\n", "experiment: the file of an experiment begins with the line # @package _global_"),
    ("# @package mine\ntrainer: {epochs: 3}\n", "there is no option mine."),
    (GLOBAL + "trainer:\n\tepochs: 3\n", "{file}, line 3: found character '\\t' that cannot start any token"),
    (GLOBAL + "trainer: {epochs: 3\n", "{file}, line 3: expected ',' or '}}', but got '<stream end>'"),
    (GLOBAL + "seed: 1\nseed: 2\n", "{file}, line 3: found duplicate key seed"),
    (GLOBAL + "seed: !!python/name:os.getcwd\n", "{file}, line 2: could not determine a constructor"),
])  # fmt: skip
def test_mistakes_in_an_experiment_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text(content)
    with pytest.raises(Exception) as caught:
        compose_run_spec(["+experiment=mine"], [f"file://{tmp_path}"])
    assert str(explain(caught.value)).startswith(message.format(file=file))
