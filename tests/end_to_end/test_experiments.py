"""Every experiment runs by its command, has the numbers of its recipe, and has a complete notebook page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from semaim.config.naming import flatten
from semaim.models.flops import encoder_cost
from semaim.preflight.shapes import build_task, open_data
from semaim.tasks.pretrain import Pretraining
from support.commands import ENVIRONMENT, RUN, finished
from support.paths import ROOT
from support.recipes import ANY, NO_SETTING, OWN, SWEEPS

FILES = sorted((ROOT / "experiments").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
EVALUATIONS = [name for name in NAMES if name.startswith(("finetune", "linprobe"))]
PRETRAININGS = [name for name in NAMES if name not in EVALUATIONS and name not in SWEEPS]
IMAGENET, H100_FLOPS = 1_281_167, 0.4 * 989e12

SMALL = (
    "model.embed_dim=32 model.depth=2 model.num_heads=2 model.query_depth=2 data.image_size=32 data.patch_size=8 "
    "data.num_workers=0 trainer.batch_size=8 trainer.max_steps=2 trainer.log_every_steps=1 "
    "tracking=none runs_dir=runs data.root=images"
)

every_experiment = pytest.mark.parametrize("name", NAMES)


def composed(name: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"+experiment={name}", "data.root=/data/imagenet"])


def points(name: str) -> list[DictConfig]:
    """Configurations of the runs of an experiment: one, or those of its sweep."""
    swept, values = SWEEPS.get(name, ("seed", "0"))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [f"+experiment={name}", "data.root=/data/imagenet"]
        return [compose("config", [*words, f"{swept}={value}"]) for value in values.split()]


@pytest.fixture(scope="module")
def noise_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of sixteen noise images in two classes."""
    folder = tmp_path_factory.mktemp("experiments") / "images"
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(16):
            file = folder / split / f"class_{number % 2}" / f"{number}.jpeg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def small_runs(noise_images: Path) -> Path:
    """Folder of two-step runs of all experiments. Their teachers are small and random: tests have no hub access."""
    folder = noise_images.parent
    own = folder / "site" / "target"
    own.mkdir(parents=True)
    own.with_name("site.yaml").touch()
    for teacher in ("dino", "clip"):
        text = (ROOT / "conf" / "target" / f"{teacher}.yaml").read_text()
        text = re.sub("model: vit_base_patch16[^ ]*", "model: vit_tiny_patch16_224.augreg_in21k_ft_in1k", text)
        (own / f"{teacher}.yaml").write_text(text.replace("pretrained: true", "pretrained: false"))
    commands = [("-m", PRETRAININGS, "evaluators=[pictures]"), ("-m", EVALUATIONS, "checkpoint=random")]
    commands += [("then=[]", [name], "evaluators=[]") for name in SWEEPS]
    for first, names, last in commands:
        option, _ = SWEEPS.get(names[0], ("experiment", ""))
        swept = option if "." in option else f"hydra:runtime.choices.{option}"
        words = SMALL.split()
        if option == "model.query_depth":  # its values divide 12 blocks
            words = [word for word in words if "depth" not in word] + ["model.depth=12"]
        name = f"run_name=${{hydra:runtime.choices.experiment}}-${{{swept}}}"
        command = [*RUN, first, f"+experiment={','.join(names)}", *words, name, last]
        done = finished(command, folder, ENVIRONMENT | {"SEMAIM_SITE": str(own.parent)})
        assert done.returncode == 0, done.stdout
    return folder / "runs"


@pytest.mark.slow
@every_experiment
def test_it_runs(name: str, small_runs: Path) -> None:
    swept, values = SWEEPS.get(name, ("experiment", name))
    runs = {run.name.lower(): run for run in small_runs.glob(f"{name}-*")}
    assert runs.keys() == {f"{name}-{value}" for value in values.split()}
    for value, config in zip(values.split(), points(name), strict=True):
        run = runs[f"{name}-{value}"]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["metrics"]["train/loss"] for line in lines if "train/loss" in line.get("metrics", {})]
        assert len(losses) == 2
        assert all(math.isfinite(loss) for loss in losses)
        stored = OmegaConf.load(run / "config.yaml")
        keys = {"trainer.epochs", "permutation._target_", "target._target_", "semantic_map.kind", "optimizer.base_lr"}
        for key in keys | {swept} - {"experiment", "permutation", "target", "semantic_map"}:
            assert OmegaConf.select(stored, key) == OmegaConf.select(config, key)


@pytest.mark.parametrize("name", OWN)
def test_it_holds_the_numbers_of_its_recipe(name: str) -> None:
    config = composed(name)
    expected = ANY | OWN[name]
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@every_experiment
def test_no_setting_of_it_is_inherited_unseen(name: str) -> None:
    """Every option that changes a result is among those that the previous test compares."""
    groups = ["optimizer", "trainer", "data"]
    groups += ["task"] if name in EVALUATIONS else ["model", "permutation", "semantic_map", "target"]
    config = composed(name)
    settings = {f"{group}.{key}" for group in groups for key in flatten(OmegaConf.to_container(config[group]))}
    assert {key for key in settings - (ANY | OWN[name]).keys() if not NO_SETTING.fullmatch(key)} == set()


@every_experiment
def test_its_page_is_complete(name: str) -> None:
    text = (ROOT / "experiments" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# Question: ")
    given = " checkpoint=runs/<name>" if name in EVALUATIONS else ""
    assert f"# Command:   python -m semaim.run +experiment={name} data.root=/data/imagenet{given}\n" in text
    published = re.search(r"# Published: (\d\d\.\d|none)", text)
    obtained = re.search(r"# Obtained:  (.+)", text)
    assert published is not None
    assert obtained is not None
    index = (ROOT / "experiments" / "README.md").read_text()
    assert re.search(rf"\({name}\.yaml\) \| {published[1]}[^|]* \| {obtained[1]} \|", index)


@every_experiment
def test_its_hours_follow_from_its_operations(name: str, noise_images: Path) -> None:
    text = (ROOT / "experiments" / f"{name}.yaml").read_text()
    flops, hours = [], 0.0
    for config in points(name):
        config.data.root = str(noise_images)
        if name in EVALUATIONS:
            config.task.source.checkpoint = "random"
        task = build_task(config, open_data(config.data, fetch=False))
        if isinstance(task, Pretraining):
            flops.append(task.spent().training_step)
        else:
            spent = encoder_cost(task.model if name.startswith("finetune") else task.vit)
            flops.append(spent.training_step if name.startswith("finetune") else spent.encode)
        images = IMAGENET // config.trainer.batch_size * config.trainer.batch_size
        hours += flops[-1] * images * config.trainer.epochs / H100_FLOPS / 3600
    said_hours = re.search(r"about (\d+) GPU-hours", text)
    said_flops = re.search(r"(\d+) GFLOP per image", text)
    assert said_hours is not None
    assert said_flops is not None
    assert float(said_hours[1]) == pytest.approx(hours, rel=0.01, abs=0.5)
    assert int(said_flops[1]) == round(sum(flops) / len(flops) / 1e9)
