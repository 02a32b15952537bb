"""Every experiment runs by its command, holds the numbers of its recipe, and keeps its notebook page in order."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from semaim.models.aim import AIM
from semaim.models.cost import cost

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
EVALUATIONS = [name for name in NAMES if name.startswith(("finetune", "linprobe"))]
PRETRAININGS = [name for name in NAMES if name not in EVALUATIONS]
IMAGENET, H100_FLOPS = 1_281_167, 0.4 * 989e12

# What the published recipes share, then what each has of its own.
ANY = {
    "data.image_size": 224,
    "data.patch_size": 16,
    "data.train_transform.scale": [0.2, 1.0],
    "data.train_transform.flip": 0.5,
    "data.eval_transform.crop_ratio": 0.875,
}
RECIPE = {
    "task._target_": "semaim.tasks.pretrain.Pretraining",
    "trainer.warmup_epochs": 30,
    "trainer.batch_size": 2048,
    "trainer.clip_grad": 3.0,
    "optimizer.base_lr": 2e-4,
    "optimizer.min_lr": 0.0,
    "optimizer.weight_decay": 0.05,
    "optimizer.optimizer._target_": "torch.optim.AdamW",
    "optimizer.optimizer.betas": [0.9, 0.95],
    "model.query_depth": 12,
    "model.head": "mlp",
    "model.mlp_ratio": 4.0,
    "model.drop_path": 0.0,
    "target._target_": "semaim.targets.Pixels",
    "target.blur_kernel_size": 9,
    "target.blur_sigma": 1.0,
    "target.norm_pix": True,
    "target.loss": "l2",
    "semantic_map.kind": "cls",
    "semantic_map.source": "auto",  # with pixels, the encoder that learns
}
FINE_TUNING = {
    "task._target_": "semaim.tasks.finetune.FineTuning",
    "task.pool": "mean",
    "task.mixup": 0.8,
    "task.cutmix": 1.0,
    "task.label_smoothing": 0.1,
    "task.train_transform.rand_augment": "rand-m9-mstd0.5-inc1",
    "task.train_transform.erase": 0.25,
    "task.train_transform.flip": 0.5,
    "trainer.batch_size": 1024,
    "trainer.clip_grad": None,
    "optimizer.min_lr": 1e-6,
    "optimizer.weight_decay": 0.05,
    "optimizer.optimizer.betas": [0.9, 0.999],
}
LINEAR_PROBE = {
    "task._target_": "semaim.tasks.linprobe.LinearProbe",
    "task.features": ["cls", "mean"],
    "task.train_transform._target_": "semaim.data.transforms.linear_probe",
    "trainer.batch_size": 4096,
    "trainer.epochs": 90,
    "trainer.warmup_epochs": 0,
    "trainer.clip_grad": None,
    "optimizer.base_lr": 0.1,
    "optimizer.min_lr": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.optimizer._target_": "torch.optim.SGD",
    "optimizer.optimizer.momentum": 0.9,
}
BASE = {"model.embed_dim": 768, "model.depth": 12, "model.num_heads": 12}
LARGE = {"model.embed_dim": 1024, "model.depth": 24, "model.num_heads": 16}
SEMANTIC = {"permutation._target_": "semaim.permutations.AttentionCenter"}
RANDOM = {"permutation._target_": "semaim.permutations.Stochastic"}
RASTER = {"permutation._target_": "semaim.permutations.Raster"}
LENGTH, DECAY = ("trainer.epochs", "trainer.warmup_epochs"), "optimizer.groups.layer_decay"
OWN = {
    "semaim_vitb_800ep": RECIPE | BASE | SEMANTIC | {"trainer.epochs": 800},
    "semaim_vitb_400ep": RECIPE | BASE | SEMANTIC | {"trainer.epochs": 400},
    "semaim_vitl_800ep": RECIPE | LARGE | SEMANTIC | {"trainer.epochs": 800},
    "saim_vitb_800ep": RECIPE | BASE | RANDOM | {"trainer.epochs": 800},
    "vit_igpt_raster_800ep": RECIPE | BASE | RASTER | {"trainer.epochs": 800},
    "finetune_vitb": FINE_TUNING
    | BASE
    | {"optimizer.base_lr": 5e-4, DECAY: 0.65, "task.drop_path": 0.1}
    | dict(zip(LENGTH, (100, 20), strict=True)),
    "finetune_vitl_mae": FINE_TUNING
    | LARGE
    | {"optimizer.base_lr": 1e-3, DECAY: 0.75, "task.drop_path": 0.2}
    | dict(zip(LENGTH, (50, 5), strict=True)),
    "linprobe_vitb": LINEAR_PROBE | BASE,
}
SMALL = (
    "model.embed_dim=32 model.depth=2 model.num_heads=2 model.query_depth=2 data.image_size=32 data.patch_size=8 "
    "data.num_workers=0 trainer.batch_size=8 trainer.max_steps=2 trainer.log_every_steps=1 "
    "tracking=none runs_dir=runs data.root=images run_name=${hydra:runtime.choices.experiment}"
)

every_experiment = pytest.mark.parametrize("name", NAMES)


def composed(name: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"+experiment={name}", "data.root=/data/imagenet"])


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two-step runs of all experiments, made by one command on sixteen noise images."""
    folder = tmp_path_factory.mktemp("experiments")
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(16):
            file = folder / "images" / split / f"class_{number % 2}" / f"{number}.jpeg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
    for names, options in ((PRETRAININGS, "task.online_knn=null"), (EVALUATIONS, "checkpoint=random")):
        done = subprocess.run(
            [sys.executable, "-m", "semaim.run", "-m", f"+experiment={','.join(names)}", *SMALL.split(), options],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.mark.slow
@every_experiment
def test_it_runs(name: str, small_runs: Path) -> None:
    run = small_runs / name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["metrics"]["train/loss"] for line in lines if "train/loss" in line.get("metrics", {})]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    stored, config = OmegaConf.load(run / "config.yaml"), composed(name)
    for key in ("trainer.epochs", "permutation._target_", "optimizer.base_lr"):
        assert OmegaConf.select(stored, key) == OmegaConf.select(config, key)


@pytest.mark.parametrize("name", OWN)
def test_it_holds_the_numbers_of_its_recipe(name: str) -> None:
    config = composed(name)
    expected = ANY | OWN[name]
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@every_experiment
def test_its_page_says_what_a_page_must(name: str) -> None:
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
def test_its_hours_follow_from_its_operations(name: str) -> None:
    text = (ROOT / "experiments" / f"{name}.yaml").read_text()
    config = composed(name)
    with torch.device("meta"):
        sizes = {key: config.model[key] for key in ("embed_dim", "depth", "num_heads", "query_depth")}
        model = AIM(out_channels=768, image_size=224, patch_size=16, **sizes)
    needs_map = config.permutation._target_.endswith("AttentionCenter")
    spent = cost(model, needs_map)
    of_evaluation = {"finetune": 3 * spent.encode, "linprobe": spent.encode}
    flops = of_evaluation.get(name.split("_")[0], spent.training_step)
    images = IMAGENET // config.trainer.batch_size * config.trainer.batch_size
    hours = flops * images * config.trainer.epochs / H100_FLOPS / 3600
    said_hours = re.search(r"about (\d+) GPU-hours", text)
    said_flops = re.search(r"(\d+) GFLOP per image", text)
    assert said_hours is not None
    assert said_flops is not None
    assert float(said_hours[1]) == pytest.approx(hours, rel=0.01, abs=0.5)
    assert int(said_flops[1]) == round(flops / 1e9)
