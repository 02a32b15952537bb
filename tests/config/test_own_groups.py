"""Group files in a configuration folder of the user."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from semaim.config.compose import CONF, points
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


def test_a_file_with_the_name_of_a_choice_of_semaim_is_not_ignored_in_silence(tmp_path: Path) -> None:
    (tmp_path / "permutation").mkdir()
    own = tmp_path / "permutation" / "raster.yaml"
    own.write_text("_target_: my.Order\n")
    for folders in ([str(tmp_path)], [f"file://{tmp_path}"]):
        assert compose_run_spec(["permutation=stochastic"], folders).choices["permutation"] == "stochastic"
        with pytest.raises(UserError) as caught:
            compose_run_spec(["permutation=raster"], folders)
        expected = f"'{own}' is not used: semaim has a permutation of this name, rename the file"
        assert str(caught.value).replace(str(own), f"'{own}'").replace("''", "'") == expected


def test_the_points_of_a_sweep_over_all_choices_of_a_group(tmp_path: Path) -> None:
    (tmp_path / "permutation").mkdir()
    (tmp_path / "permutation" / "random_own.yaml").write_text("_target_: my.Order\n")
    found = points(["seed=1,2", "permutation=glob(ra*)"], [f"file://{tmp_path}"])
    assert found == [
        [f"seed={seed}", f"permutation={order}"]
        for seed in (1, 2)
        for order in sorted(path.stem for path in (*CONF.glob("permutation/ra*"), *tmp_path.glob("permutation/*")))
    ]


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
    (GLOBAL + "seed: 1  # caf\xe9\n", "a file of the configuration is not text in UTF-8: 'utf-8' codec can't decode"),
])  # fmt: skip
def test_mistakes_in_an_experiment_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(Exception) as caught:
        compose_run_spec(["+experiment=mine"], [f"file://{tmp_path}"])
    assert str(explain(caught.value)).startswith(message.format(file=file))


NO_CLASS = (
    "names no class: begin it with a line defaults: \\[<choice>, _self_\\], .*or with _target_: <module>.<class>$"
)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("permutation/mine.yaml", "_tagret_: my.Order\n", r"mine\.yaml'? has _tagret_: did you mean _target_\?$"),
    ("permutation/mine.yaml", "", f"mine\\.yaml'? {NO_CLASS}"),
    ("model/mine.yaml", "embed_dim: 48\n", f"mine\\.yaml'? {NO_CLASS}"),
    ("data/mine.yaml", "root: photos\n", f"mine\\.yaml'? {NO_CLASS}"),
    ("model/mine.yaml", "defaults: [aim_tiny, _self_]\nembed_dim: many\n", "whole number from 4 to 65536$"),
])  # fmt: skip
def test_a_file_that_does_not_say_which_class_it_is_for(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        compose_run_spec([file.removesuffix(".yaml").replace("/", "=")], [f"file://{tmp_path}"])


def test_an_option_that_a_class_of_ones_own_does_not_have() -> None:
    own = {"permutation": {"_target_": "colorsys.rgb_to_hls", "red": 2}}
    with pytest.raises(InstantiationException) as caught:
        instantiate(own)
    told = "there is no option permutation.red; colorsys.rgb_to_hls has: r, g, b"
    assert explain(caught.value, []) == told
