"""The help of `semaim run` is complete, names options and pages that exist, and explains them by their comments."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

import semaim
from semaim.config.compose import CONF, choices
from semaim.config.described import all_options, choice_of, groups
from semaim.config.help import WIDTH, help_page
from semaim.errors import UserError
from support.commands import run
from support.in_process import composed
from support.paths import ROOT

SOURCE = Path(semaim.__file__).parent
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = [choice for group, choice in CHOICES if group == "experiment"]
OVERVIEW = help_page(["--help"])


def help_options() -> list[tuple[str, str]]:
    """All key=value pairs of the overview, except its placeholders."""
    found = re.findall(r"(?<![\w+-])([a-z_]+(?:\.[a-z_]+)*)=([^\s`]+)", OVERVIEW)
    return sorted({pair for pair in found if pair[0] not in ("group", "option")})


def test_the_overview_lists_every_group_and_choice() -> None:
    listed = dict(re.findall(r"^  ([\w/]+)  +(\w.*(?:\n {18}.*)*)", OVERVIEW, re.MULTILINE))
    names = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"} | {"hydra/launcher"}
    assert names == set(groups()) <= set(listed)
    for group in names - {"experiment"}:
        assert re.split(r",\s+", listed[group].rpartition(": ")[2]) == choices(group)
    assert listed["experiment"].endswith(": semaim run --help experiment lists them")
    recipes = help_page(["--help", "experiment"])
    assert [name for name in choices("experiment") if f"\n  {name} " not in recipes] == []
    assert len(help_options()) >= 25


@pytest.mark.parametrize(("key", "values"), help_options())
def test_option_in_the_help_exists(key: str, values: str) -> None:
    for value in re.split(r"[|,](?![^[]*\])", values):  # but not inside a list
        if key in {group for group, _ in CHOICES}:
            assert (key, value) in CHOICES
        elif "<" in value or "..." in value:
            assert key in composed()
        else:
            assert any(exists(key, value, task) for group, task in CHOICES if group == "task")


def exists(key: str, value: str, task: str) -> bool:
    """Whether a task has an option."""
    try:
        launcher = ["hydra/launcher=slurm"] if key.startswith("hydra.launcher") else []
        composed(f"task={task}", f"{key}={value}", *launcher)
    except ConfigCompositionException:
        return False
    return True


def test_pages_named_in_messages_exist() -> None:
    texts = [*SOURCE.rglob("*.py"), *CONF.rglob("*.yaml"), *(ROOT / "experiments").iterdir(), ROOT / "README.md"]
    named = {page for file in texts for page in re.findall(r"docs/[\w-]+\.md", file.read_text() + OVERVIEW)}
    assert named <= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}


def test_every_choice_and_every_option_of_every_choice_has_a_comment() -> None:
    options = all_options()
    assert len(options) > 120
    assert [(name, choice) for name, of in options.items() for choice, each in of.items() if not each.comment] == []
    assert [(group, name) for group in groups() for name in choices(group)
            if not choice_of(group, name).description.strip()] == []  # fmt: skip


def test_a_group_is_explained_with_its_choices_and_the_options_of_its_default() -> None:
    said = help_page(["--help", "model"])
    assert said.startswith("model: method and size of the model\n\n  aim_base            ViT-B encoder and 12 query")
    assert "\n  aim_tiny (default)  For CPUs and tests: 0.5 M parameters in the encoder.\n" in said
    assert re.search(r"\n\nWith model=aim_tiny:\n\n  model.embed_dim=96 +width of a token\n", said)
    assert said.endswith("More about a choice: semaim run --help model=aim_base")
    assert "More about" not in help_page(["--help", "semantic_map=cls"])  # it has no choices


def test_a_choice_has_its_values_and_the_comments_of_the_file_it_extends() -> None:
    said = help_page(["--help", "model=aim_large"])
    assert "aim_tiny" not in said
    assert re.search(r"\n  model.embed_dim=1024 +width of a token\n", said)
    launcher = help_page(["-h", "hydra/launcher=submitit_local"])
    assert re.search(r"\n  hydra.launcher.timeout_min=10000 +time limit of a run, in minutes$", launcher)
    assert re.search(r"task.source.ema=false +use the moving average", help_page(["--help", "task=knn"]))
    assert "task.model" not in help_page(["--help", "task=pretrain"])  # a reference to a group
    recipe = help_page(["--help", "+experiment=ablation_orders"])
    assert (ROOT / "experiments" / "ablation_orders.yaml").read_text().strip() in recipe


def test_an_option_is_explained_with_its_kind_and_its_values_elsewhere() -> None:
    assert (
        help_page(["--help", "trainer.epochs"])
        == """\
trainer.epochs=20
  passes over the training images
  must be a whole number from 1 to 1000000000
  this is the value with trainer=small
  with trainer=finetune: 100, trainer=linprobe: 90, trainer=semaim: 800"""
    )
    assert "\n  this is the value with data=folder" in help_page(["--help", "data.source.masks"])
    assert help_page(["--help", "data.train_transform"]).count("\n") == 3  # scale, flip, mean and std
    assert help_page(["--help", "sweep", "seed"]).count("sweep.") == 5
    assert "task=features" in help_page(["--help", "task.format"])


@pytest.mark.parametrize(("word", "message"), [
    ("modle", "--help modle: there is no group, choice or option of this name; did you mean model?"),
    ("aim_lrge", "--help aim_lrge: there is no group, choice or option of this name; did you mean aim_large?"),
    ("seeed", "--help seeed: there is no group, choice or option of this name; did you mean seed?"),
    ("model=aim_lrge", "--help model=aim_lrge: there is no aim_lrge in model: did you mean aim_large? choose from"),
    ("qqqq", "--help qqqq: there is no group, choice or option of this name: semaim run --help lists the groups"),
])  # fmt: skip
def test_an_unknown_word_gets_the_nearest_one(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        help_page(["--help", word])
    assert str(caught.value).startswith(message)


def test_choices_of_ones_own_are_explained(tmp_path: Path, set_site: Callable[[str], None]) -> None:
    set_site("")
    for folder in ("site", "conf"):
        (tmp_path / folder / "model").mkdir(parents=True)
        (tmp_path / folder / "model" / f"of_{folder}.yaml").write_text(
            "# One of mine.\ndefaults: [aim_tiny, _self_]\n# how wide\nembed_dim: 48\ncolour: red   # as it is\n"
        )
    words = ["--config-dir", str(tmp_path / "conf")]
    assert re.search(r"mae_tiny,\s+of_conf, of_site, simmim_base,", help_page(["--help", *words]))
    assert f"  of_site             One of mine. ({tmp_path}/site/model/of_site.yaml)" in re.sub(
        r"\n {22}", " ", help_page(["--help", "model"])
    )
    said = help_page([*words, "--help", "of_conf"])
    assert re.search(r"model.embed_dim=48 +how wide\n", said)
    assert re.search(r"model.depth=4 +blocks of the encoder", said)
    assert re.search(r"model.colour=red +as it is$", said)


def test_lines_are_not_too_long() -> None:
    for group in groups():
        pages = [help_page(["--help", word]) for word in (group, *choices(group)) if group != "experiment"]
        assert max((len(line) for page in pages for line in page.splitlines()), default=0) <= WIDTH
    assert max(map(len, OVERVIEW.splitlines())) <= WIDTH + 2


def test_as_typed(tmp_path: Path) -> None:
    done = run(tmp_path, "seed=3", "--help")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "seed=0")
    done = run(tmp_path, "--help", "modle")
    assert (done.returncode, done.stdout.startswith("error: --help modle: ")) == (2, True)
    assert not list(tmp_path.iterdir())
