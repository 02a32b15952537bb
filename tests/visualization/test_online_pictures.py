"""Pictures during pretraining: they show the current model, survive an interruption, and do not affect training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semaim import load_model
from semaim.data.object_patches import object_patches
from semaim.data.samples import sample_indices
from semaim.data.sources import digits
from semaim.data.transforms import evaluation
from semaim.evaluation.order_metrics import agreement, entropy, peak_from_centre
from semaim.semantics import semantic_map
from semaim.targets import Pixels
from support.commands import SMALL, journal, losses, started
from support.commands import run as typed
from support.in_process import run
from support.waiting import wait_for

LOOKING = (
    "trainer.batch_size=128",  # 11 steps an epoch
    "trainer.warmup_epochs=0",
    "evaluators=[pictures]",
    "task.evaluators.pictures.every_epochs=1",
    "task.evaluators.pictures.images=20",
    "task.evaluators.pictures.drawn=3",
)


def stored(folder: Path, step: int) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(folder / "pictures" / f"step_{step:08d}.npz") as file:
        return dict(file)


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Pictures of orders, by step."""
    lines = [line for line in journal(folder) if "order/map_entropy" in line.get("metrics", ())]
    return {line["step"]: {k: v for k, v in line["metrics"].items() if k.startswith("order/")} for line in lines}


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs and two steps with pictures at its start, after each epoch and at its end."""
    options = (*LOOKING, "trainer.max_steps=24", "trainer.milestone_every_epochs=1", "permutation=attention")
    return run(tmp_path_factory.mktemp("looked"), *options)


def test_pictures_are_drawn_at_the_start_after_epochs_and_at_the_end(looked: Path) -> None:
    steps = (0, 11, 22, 24)
    assert sorted(metrics(looked)) == list(steps)
    images = [line for line in journal(looked) if "image" in line]
    assert [line["step"] for line in images] == list(steps)
    assert [line["image"]["file"] for line in images] == [f"pictures/step_{step:08d}.png" for step in steps]
    assert {line["image"]["key"] for line in images} == {"pictures/held_out"}
    for line in images:
        with Image.open(looked / line["image"]["file"]) as picture:
            assert picture.width > 3 * picture.height / 2, "seven pictures for each of three images"
    first, last = (np.asarray(Image.open(looked / images[i]["image"]["file"])) for i in (0, -1))
    assert (first != last).any()


@pytest.mark.parametrize("step", [11, 22])
def test_numbers_are_those_of_the_model_of_that_step(looked: Path, step: int) -> None:
    model = load_model(looked / "checkpoints" / f"step_{step:08d}.pt")
    seen = stored(looked, step)
    held_out = digits().val
    assert held_out is not None
    indices = sample_indices(360, 20)
    assert len({held_out.label(i) for i in indices}) > 5, "of many classes"
    assert seen["image"].tolist() == [f"digits/val[{i}]" for i in indices]
    transform = evaluation(32, 1.0, (0.3, 0.3, 0.3), (0.36, 0.36, 0.36))
    images_BCHW = torch.stack([transform(held_out.read(i)) for i in indices])
    with torch.no_grad():
        map_BL = semantic_map(model.encode(images_BCHW), "cls")
    torch.testing.assert_close(torch.from_numpy(seen["semantic_map_BL"]), map_BL, rtol=1e-5, atol=0)
    order_BL = torch.from_numpy(seen["order_BL"])
    in_order_BL = torch.from_numpy(seen["semantic_map_BL"]).gather(1, order_BL)
    assert (in_order_BL.diff(dim=1) <= 0).all(), "the most semantic patch first"
    told = metrics(looked)[step]
    assert told["order/map_entropy"] == pytest.approx(float(entropy(map_BL).mean()), rel=1e-6)
    assert told["order/map_peak_from_centre"] == pytest.approx(float(peak_from_centre(map_BL, (8, 8)).mean()), rel=1e-6)
    before_BL = torch.from_numpy(stored(looked, step - 11)["order_BL"])
    assert told["order/order_agreement"] == pytest.approx(float(agreement(order_BL, before_BL).mean()), rel=1e-6)
    object_BL = object_patches(held_out, indices, transform, 4)
    assert told["order/object_in_image"] == pytest.approx(float(object_BL.float().mean()), rel=1e-6)
    share = float(object_BL.gather(1, order_BL[:, :16]).float().mean())
    assert told["order/object_in_first_quarter"] == pytest.approx(share, rel=1e-6)
    with torch.no_grad():
        prediction_BLP = model.predict(images_BCHW, order_BL)
    error_BL = Pixels(4).loss(prediction_BLP, Pixels(4)(images_BCHW))
    torch.testing.assert_close(torch.from_numpy(seen["error_BL"]), error_BL, rtol=1e-4, atol=1e-5)


def test_agreement_is_measured_from_the_second_time_on(looked: Path) -> None:
    told = metrics(looked)
    assert "order/order_agreement" not in told[0]
    assert all(-1 <= told[step]["order/order_agreement"] <= 1 for step in (11, 22, 24))


def test_results_and_screen_show_only_losses_and_accuracies(looked: Path) -> None:
    assert list(json.loads((looked / "status.json").read_text())["result"]) == ["loss"]


def test_training_is_not_affected(looked: Path, tmp_path: Path) -> None:
    blind = run(tmp_path, *LOOKING[:2], "trainer.max_steps=24", "permutation=attention")
    assert losses(blind) == losses(looked)
    assert not (blind / "pictures").exists()


@pytest.mark.slow
def test_a_killed_run_draws_the_same_afterwards(tmp_path: Path) -> None:
    """With a random order the pictures depend only on the seed and the step."""
    options = (*SMALL, *LOOKING, "permutation=stochastic_center", "trainer.max_steps=33")
    undisturbed = run(tmp_path, *options[len(SMALL) :], "run_name=whole")
    with started(tmp_path, *options, "run_name=killed") as process:
        folder = tmp_path / "runs" / "killed"
        wait_for(lambda: (folder / "pictures" / "step_00000011.png").exists(), "the second look")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    assert typed(tmp_path, *options, "run_name=killed").returncode == 0
    for step in (0, 11, 22, 33):
        ours, theirs = stored(folder, step), stored(undisturbed, step)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs), step
    assert metrics(folder) == metrics(undisturbed)
    images = [line["step"] for line in journal(folder) if "image" in line]
    assert images == [0, 11, 22, 33]


def test_a_random_order_agrees_with_nothing_and_a_fixed_one_with_itself(tmp_path: Path) -> None:
    for order, low, high in (("stochastic", -0.15, 0.15), ("raster", 1.0, 1.0)):
        folder = run(tmp_path, *LOOKING, "trainer.max_steps=11", f"permutation={order}", f"run_name={order}")
        assert low <= metrics(folder)[11]["order/order_agreement"] <= high


def test_images_are_always_the_same_random_ones() -> None:
    assert sample_indices(10, 20) == list(range(10))
    some = sample_indices(400, 40)
    assert some == sorted(set(some)) == sample_indices(400, 40)
    assert len(some) == 40
    assert max(some) < 400
    assert len({i % 10 for i in some}) == 10, "also where ten classes take turns"
