"""Every experiment runs by its command, has the numbers of its recipe, and has a complete notebook page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
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
from support.recipes import ANY, NO_SETTING, OWN, SWEEPS, points

FILES = sorted((ROOT / "experiments").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
EVALUATIONS = [name for name in NAMES if name.startswith(("finetune", "linprobe"))]
PRETRAININGS = [name for name in NAMES if name not in EVALUATIONS and name not in SWEEPS]
IMAGENET, H100_FLOPS = 1_281_167, 0.4 * 989e12

# Eight by eight patches, so that an image has two by two mask units of SimMIM, and a patch for each of 49 segments.
SMALL = (
    "data.image_size=64 data.patch_size=8 data.num_workers=0 trainer.batch_size=8 trainer.max_steps=2 "
    "trainer.log_every_steps=1 tracking=none runs_dir=runs data.root=images"
)
SMALL_MODEL = "model.embed_dim=32 model.depth=2 model.num_heads=2"
SMALL_DECODER = {
    "AIM": "model.query_depth=2",
    "MAE": "model.decoder_dim=32 model.decoder_depth=1 model.decoder_num_heads=2",
    "SimMIM": "",
}

every_experiment = pytest.mark.parametrize("name", NAMES)


def composed(name: str, options: Sequence[str] = ()) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"+experiment={name}", "data.root=/data/imagenet", *options])
    if config.trainer.flops is not None:  # as `compose_run_spec` does
        config.trainer.epochs = None
    return config


def kind_of_model(name: str) -> str:
    return str(composed(name).model._target_).rpartition(".")[2]


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
    of_aim = [name for name in PRETRAININGS if kind_of_model(name) == "AIM"]
    commands = [("-m", of_aim, "evaluators=[pictures]"), ("-m", EVALUATIONS, "checkpoint=random")]
    commands += [("then=[]", [name], "evaluators=[]") for name in NAMES if name not in of_aim + EVALUATIONS]
    for first, names, last in commands:
        swept = SWEEPS.get(names[0], {"experiment": ""})
        small = f"{SMALL_MODEL} {SMALL_DECODER[kind_of_model(names[0])]}"
        if "model.query_depth" in swept:  # its values divide 12 blocks
            small = "model.embed_dim=32 model.depth=12 model.num_heads=2"
        elif "method" in swept:
            small = "size=tiny"
        values = [f"${{{option if '.' in option else f'hydra:runtime.choices.{option}'}}}" for option in swept]
        name = f"run_name={'-'.join(['${hydra:runtime.choices.experiment}', *values])}"
        command = [*RUN, first, f"+experiment={','.join(names)}", *SMALL.split(), *small.split(), name, last]
        done = finished(command, folder, ENVIRONMENT | {"SEMAIM_SITE": str(own.parent)})
        assert done.returncode == 0, done.stdout
    return folder / "runs"


@pytest.mark.slow
@every_experiment
def test_it_runs(name: str, small_runs: Path) -> None:
    runs = {run.name.lower().replace("none", "null"): run for run in small_runs.glob(f"{name}-*")}
    of_options = {"-".join([name, *(each.partition("=")[2] for each in options or [f"={name}"])]): options
                  for options in points(name)}  # fmt: skip
    assert runs.keys() == of_options.keys()
    for run_name, options in of_options.items():
        run, config = runs[run_name], composed(name, options)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["metrics"]["train/loss"] for line in lines if "train/loss" in line.get("metrics", {})]
        assert len(losses) == 2
        assert all(math.isfinite(loss) for loss in losses)
        stored = OmegaConf.load(run / "config.yaml")
        keys = {
            "trainer.epochs",
            "trainer.flops",
            "permutation._target_",
            "target._target_",
            "semantic_map.kind",
            "optimizer.base_lr",
        }
        keys |= {"model._target_"} if name not in EVALUATIONS else set()
        for key in keys | {option for option in SWEEPS.get(name, ()) if "." in option}:
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
    for config in [composed(name, options) for options in points(name)]:
        config.data.root = str(noise_images)
        if name in EVALUATIONS:
            config.task.source.checkpoint = "random"
        task = build_task(config, open_data(config.data, fetch=False))
        if isinstance(task, Pretraining):
            flops.append(task.spent.training_step)
        else:
            spent = encoder_cost(task.model if name.startswith("finetune") else task.vit)
            flops.append(spent.training_step if name.startswith("finetune") else spent.encode)
        images = IMAGENET // config.trainer.batch_size * config.trainer.batch_size
        hours += (config.trainer.flops or flops[-1] * images * config.trainer.epochs) / H100_FLOPS / 3600
    said_hours = re.search(r"about (\d+) GPU-hours", text)
    said_flops = re.search(r"(\d+) GFLOP per image", text)
    assert said_hours is not None
    assert said_flops is not None
    assert float(said_hours[1]) == pytest.approx(hours, rel=0.01, abs=0.5)
    assert int(said_flops[1]) == round(sum(flops) / len(flops) / 1e9)
