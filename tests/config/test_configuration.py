"""Every configuration file builds its target, covers all options, and has no option without effect.

Each file of each group is selected once on top of the default configuration; its keys are compared with the signature
and source of its constructor.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import semaim
from semaim.config.compose import CONF
from semaim.config.messages import explain
from semaim.config.naming import flatten
from semaim.config.run_spec import compose_run_spec
from semaim.data.image_data import ImageData
from semaim.data.shard_command import shard
from semaim.errors import UserError
from semaim.evaluation.evaluator import Evaluator

SOURCE = Path(semaim.__file__).parent
NOT_CHOSEN = ("hydra", "experiment", "method", "size")  # method and size choose among others: test_methods_group
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in NOT_CHOSEN)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
BUILT_APART = ("data", "model", "recipe", "task", "evaluators")  # in tests of their own
NEEDS_ROOT = ("folder", "imagenet", "shards")
DOWNLOADED = ("cifar10", "stl10")
NEED_NOTHING = {"digits": (1437, 360), "shapes": (1600, 400)}  # numbers of training and held-out images
# Passed at run time to a `_partial_` target, not by the configuration.
AT_RUNTIME = {
    "semaim.models.aim.AIM": {"out_channels"},
    "semaim.models.mae.MAE": {"out_channels"},
    "semaim.models.simmim.SimMIM": {"out_channels"},
    "semaim.data.sources.cifar10": {"root"},
    "semaim.data.sources.stl10": {"root"},
    "semaim.data.sources.image_folders": {"root"},
    "semaim.data.shards.shards": {"root"},
    "torch.optim.AdamW": {"params"},
    "torch.optim.SGD": {"params"},
    "semaim.training.optimizers.parameter_groups": {"model", "weight_decay"},
    "semaim.training.optimizers.layer_decay_groups": {"model", "weight_decay"},
    "semaim.models.heads.head_groups": {"model", "weight_decay"},
}
# embed_dim, depth, num_heads
SIZES = {
    "tiny": (96, 4, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
QUERY_DEPTHS = {"tiny": 2, "small": 12, "base": 12, "large": 12, "huge": 16}
# decoder_dim, decoder_depth, decoder_num_heads
DECODERS = {"tiny": (48, 2, 3), "small": (192, 8, 6)} | dict.fromkeys(("base", "large", "huge"), (512, 8, 16))


@cache
def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def chosen(group: str, choice: str, *overrides: str) -> DictConfig:
    return composed(f"{group}={choice}", *(["data.root=nowhere"] if choice in NEEDS_ROOT else []), *overrides)


def plain(config: DictConfig) -> Any:
    """In plain types, unresolved, so that values interpolated from another group stay references."""
    return OmegaConf.to_container(config, resolve=False)


def constructors(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_` in a node, with its location."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from constructors(value, f"{where}.{key}")


def part(config: Any, group: str) -> Any:
    """What the choice in a group contributes; that of evaluators is part of the task."""
    return config["task"]["evaluators"] if group == "evaluators" else config[group]


def targets() -> list[str]:
    """Everything that any configuration file constructs."""
    found = {node["_target_"] for choice in CHOICES for _, node in constructors(plain(chosen(*choice)))}
    return sorted(found)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder in ImageNet's layout: two classes of three images, in train and val."""
    for part in ("train", "val"):
        for number in range(6):
            folder = tmp_path / part / f"n{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 260), (40 * number, 90, 10)).save(folder / f"{number}.jpeg")
    return tmp_path


def test_every_group_has_choices() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == {path.name for path in CONF.iterdir() if path.is_dir()} - set(NOT_CHOSEN)
    assert len(CHOICES) >= 30
    assert {choice for group, choice in CHOICES if group == "model"} == {
        f"{family}_{size}" for family in ("aim", "mae", "simmim") for size in SIZES
    }


def test_links_of_the_configuration_resolve() -> None:
    assert (SOURCE / "conf" / "config.yaml").is_file()
    assert (SOURCE / "conf").resolve() == CONF
    assert (CONF / "experiment").is_dir()
    broken = [path for path in CONF.rglob("*") if not path.exists()]
    assert broken == []


# Options without which a choice cannot be built; a named model is built without its weights, wandb without a key.
REQUIRED = {
    ("target", "teacher"): ("target.weights=timm:vit_base_patch16_224.dino",),
    ("tracking", "wandb"): ("tracking.mode=offline",),
}


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] not in BUILT_APART])
def test_choice_is_built(group: str, choice: str) -> None:
    config = chosen(group, choice, *REQUIRED.get((group, choice), ()))
    built = instantiate(config[group])
    assert f"{type(built).__module__}.{type(built).__name__}" == config[group]._target_


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "evaluators"])
def test_evaluator_is_built(choice: str) -> None:
    ((name, evaluator),) = instantiate(chosen("evaluators", f"[{choice}]").task.evaluators).items()
    assert name == choice
    assert isinstance(evaluator, Evaluator)


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "data"])
def test_data_are_built_or_report_what_is_missing(
    choice: str, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if choice in DOWNLOADED:
        config = chosen("data", choice, f"data.root={photographs}", "data.source.download=false")
        with pytest.raises(InstantiationException) as caught:
            instantiate(config.data)
        assert f"data.root={photographs}" in str(explain(caught.value))
        assert any(isinstance(e, UserError) for e in (caught.value.__cause__, caught.value.__context__))
        return
    if choice == "shards":
        folder, photographs = photographs, tmp_path_factory.mktemp("shards")
        shard([f"data.root={folder}", f"out={photographs}"])
    root = [f"data.root={photographs}"] if choice in NEEDS_ROOT else []
    data: ImageData = instantiate(composed(f"data={choice}", *root).data)
    assert data.splits.val is not None
    sample = data.evaluation(data.splits.val, [0])[0]
    assert sample.image is not None
    assert sample.image.shape == (3, *data.image_size)
    assert (sample.label, sample.index, sample.unreadable) == (data.splits.val.label(0), 0, [])
    assert (len(data.splits.train), len(data.splits.val)) == ((6, 6) if root else NEED_NOTHING[choice])


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "model"])
def test_model_has_the_sizes_of_its_file(choice: str) -> None:
    node = composed(f"model={choice}", "data.image_size=64", "data.patch_size=16").model
    family, _, size = choice.partition("_")
    width, depth, heads = SIZES[size]
    with torch.device("meta"):
        model = instantiate(node)(out_channels=48)
    assert (node.embed_dim, node.depth, node.num_heads) == SIZES[size]
    assert model.embed_dim == width
    assert len(model.blocks) == depth
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    assert model.patch_embed.proj.weight.shape == (width, 3, 16, 16)
    assert model.blocks[0].mlp.fc1.weight.shape == (4 * width, width)
    assert model.pos_embed.shape == (1, 1 + 16, width)
    encoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks."))
    assert encoder == depth * (12 * width**2 + 13 * width)  # qkv, projection, two of four times the width; two norms
    if family == "aim":
        assert len(model.query_blocks) == node.query_depth == QUERY_DEPTHS[size]
        assert {block.attn.num_heads for block in model.query_blocks} == {heads}
        assert model.prediction_head.fc2.weight.shape == (48, 4 * width)
    elif family == "mae":
        decoder_width, decoder_depth, decoder_heads = DECODERS[size]
        assert len(model.decoder_blocks) == decoder_depth
        assert {block.attn.num_heads for block in model.decoder_blocks} == {decoder_heads}
        assert model.decoder_pred.weight.shape == (48, decoder_width)
        assert model.visible == 4  # of 16 patches
    else:
        assert model.prediction_head.weight.shape == (48, width)
        assert model.hidden_units == 10  # of 16 patches


@pytest.mark.parametrize("task", [choice for group, choice in CHOICES if group == "task"])
def test_task_composes_from_defaults(task: str) -> None:
    config = composed(f"task={task}")
    assert set(config.named_after) <= {group for group, _ in CHOICES}
    target = config.task._target_
    assert target.startswith("semaim.tasks.")
    if task == "pretrain":
        built = instantiate(config.task)
        assert f"{type(built).__module__}.{type(built).__name__}" == target
        assert built.model.architecture["out_channels"] == 48


@pytest.mark.parametrize("task", ["linprobe", "finetune"])
def test_a_recipe_changes_options_that_exist(task: str) -> None:
    changes = flatten(OmegaConf.to_container(OmegaConf.load(CONF / "recipe" / "short" / f"{task}.yaml")))
    published, short = (
        flatten(OmegaConf.to_container(composed("data=imagenet", f"task={task}", f"recipe={recipe}")))
        for recipe in ("published", "short")
    )
    assert {key: short[key] for key in changes} == changes
    assert {key for key in short if short[key] != published[key]} == {*changes, "recipe"}


@pytest.mark.parametrize(("data", "recipe"), [("digits", "short"), ("shapes", "short"), ("imagenet", "published"),
                                              ("cifar10", "published")])  # fmt: skip
def test_the_recipe_is_a_choice_with_a_default_of_the_data(data: str, recipe: str) -> None:
    other = {"short": "published", "published": "short"}[recipe]
    for words, expected in (([], recipe), ([f"recipe={other}"], other)):
        root = ["data.root=/x"] if data in NEEDS_ROOT else []
        spec = compose_run_spec([f"data={data}", *root, "task=linprobe", "checkpoint=random", *words])
        assert spec.choices["recipe"] == spec.parts["recipe"] == spec.config["recipe"] == expected
        assert spec.config["trainer"]["epochs"] == {"short": 20, "published": 90}[expected]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes(experiment: str) -> None:
    config = composed(f"+experiment={experiment}")
    assert set(config) == set(composed())


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_keys_are_exactly_the_arguments(group: str, choice: str) -> None:
    """The file has no key that the constructor does not accept, and no default exists in code alone."""
    for where, node in constructors(part(plain(chosen(group, choice)), group)):
        target = node["_target_"]
        parameters = inspect.signature(get_object(target)).parameters
        assert inspect.Parameter.VAR_KEYWORD not in {p.kind for p in parameters.values()}, where
        keys = {key for key in node if not key.startswith("_")}
        runtime = AT_RUNTIME.get(target, set())
        assert keys <= set(parameters) - runtime, where
        assert runtime <= set(parameters), where
        assert not runtime or node.get("_partial_"), where
        if target.startswith("semaim."):  # of other packages, the configuration sets only the important arguments
            assert set(parameters) - runtime == keys, where


@cache
def attributes_read() -> frozenset[str]:
    """Names of all attributes that are read anywhere in the package."""
    nodes = [node for path in SOURCE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))


# Options whose only use in the constructor is an `if`.
DECIDES = {"semaim.data.sources.image_folders": {"layout"}, "semaim.data.image_data.ImageData": {"patch_size"}}


def has_effect(parameter: str, body: ast.AST) -> bool:
    """Whether a parameter is stored in an attribute that is read somewhere, or has a use other than a check."""
    checks: set[ast.AST] = set()
    for node in ast.walk(body):
        if isinstance(node, ast.If | ast.Raise):
            checks.update(ast.walk(node.test if isinstance(node, ast.If) else node))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == parameter:
            return any(isinstance(t, ast.Attribute) and t.attr in attributes_read() for t in node.targets)
    return any(isinstance(n, ast.Name) and n.id == parameter for n in set(ast.walk(body)) - checks)


@pytest.mark.parametrize("target", [name for name in targets() if name.startswith("semaim.")])
def test_every_option_has_an_effect(target: str) -> None:
    function = get_object(target)
    parameters = set(inspect.signature(function).parameters) - DECIDES.get(target, set())
    if dataclasses.is_dataclass(function):
        assert parameters <= attributes_read()
        return
    code = function.__init__ if inspect.isclass(function) and parameters else function
    body = ast.parse(textwrap.dedent(inspect.getsource(code)))
    assert [name for name in sorted(parameters) if not has_effect(name, body)] == []


def test_the_check_for_unused_options_finds_them() -> None:
    body = ast.parse("def f(self, a, b, c, d):\n if a > 1: raise E(a)\n self.never_read_b = b\n self.x = c + d")
    assert [name for name in "abcd" if not has_effect(name, body)] == ["a", "b"]
