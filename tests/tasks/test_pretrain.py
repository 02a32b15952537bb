"""Pretraining with feature targets: runs, their continuation, and mistakes reported before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

import semaim
from semaim.config.messages import explain
from semaim.errors import UserError
from semaim.models.flops import cost
from semaim.preflight.check import check_sweep
from semaim.teachers import Teacher
from support.commands import SMALL, journal, losses, together
from support.evaluating import assert_same_bits
from support.in_process import composed, go, run, run_here
from support.targets import NOW, ORDERS, task_of, weights, with_small_teachers
from support.teaching import network, tiny_clip, tiny_dino, write


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Options of each target, with a small teacher where it has one."""
    return with_small_teachers(tmp_path_factory.mktemp("weights"))


# Runs


@pytest.mark.parametrize("order", ORDERS)
def test_the_moving_average_works_with_every_order(tmp_path: Path, files: dict[str, Any], order: str) -> None:
    average = run(tmp_path / "ema", *files["ema"], f"permutation={order}", *NOW)
    online = run(tmp_path / "online", "target=online", f"permutation={order}", *NOW)
    found, beside = losses(average), losses(online)
    assert found[1] == beside[1], "before the first update both are the same"
    assert found[2] != beside[2]
    assert all(0 < loss < 4 for loss in found.values())
    saved = weights(average)
    for name, value in saved["ema"].items():
        assert name == "pos_embed" or not torch.equal(value, saved["model"][name]), name


def test_the_schedule_of_the_moving_average_is_the_trainers() -> None:
    recipe = task_of("target=ema", "trainer=semaim", "trainer.batch_size=32").trainer
    assert recipe.ema
    assert not task_of("target=online", "trainer=semaim", "trainer.batch_size=32").trainer.ema
    assert [recipe.ema_decay_at(epoch) for epoch in (0, 50, 100, 800)] == pytest.approx(
        [0.999, 0.99945, 0.9999, 0.9999]
    )


@pytest.mark.parametrize("target", ["dino", "clip"])
def test_a_teacher_does_not_change(
    tmp_path: Path, files: dict[str, Any], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = []
    load = Teacher.load
    monkeypatch.setattr(Teacher, "load", lambda self: (teachers.append(self), load(self))[1])
    folder = run(tmp_path, *files[target], *NOW, "model.drop_path=0.1", "optimizer.weight_decay=0.5")
    (teacher,) = teachers
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    before = network(tiny_dino if target == "dino" else tiny_clip)
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    saved = weights(folder)
    assert saved["task"] == {"evaluators": {}, "teacher": teacher.identity}
    own = semaim.load_model(folder)
    assert saved["model"].keys() == own.state_dict().keys()
    assert len(saved["optimizer"]["state"]) == sum(1 for _ in own.parameters())
    tags: dict[str, str] = {}
    for line in journal(folder):
        tags |= line.get("tags", {})
    assert {f"teacher.{key}": value for key, value in teacher.identity.items()}.items() <= tags.items()


@pytest.mark.parametrize("target", ["online", "ema", "dino", "clip"])
def test_its_checkpoints_can_be_loaded_and_evaluated(tmp_path: Path, files: dict[str, Any], target: str) -> None:
    folder = run(tmp_path, *files[target], *NOW)
    model = semaim.load_model(folder)
    width = {"online": 32, "ema": 32, "dino": 24, "clip": 20}[target]
    assert model.architecture["out_channels"] == width
    prediction_BLP = model.predict(torch.randn(1, 3, 32, 32), torch.arange(64)[None])
    assert prediction_BLP.shape == (1, 64, width)
    evaluate = ("task=knn", "tracking=none", "task.ks=[10]", "task.features_dir=null", "run_name=knn")
    knn = go(tmp_path / "knn", *evaluate, f"checkpoint={folder}")
    result = json.loads((knn / "status.json").read_text())["result"]
    assert set(result) == {f"knn_10_{kind}{top}" for kind in ("cls", "mean") for top in ("", "_top5")}


def test_evaluations_need_no_teacher(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """checkpoint=random depends on the number of target channels; no teacher weights are read for it."""
    dino = ("target=dino", "target.model=tiny_dino.here", "target.weights=/nowhere/weights.pth")
    small = [option for option in SMALL if option.startswith("model.")]
    encoder = instantiate(composed("task=knn", "checkpoint=random", *small, *dino).task.source)
    monkeypatch.setattr(Teacher, "load", None)
    torch.manual_seed(0)
    found = encoder.encoder().state_dict()
    beginning = task_of(*files["dino"]).model.state_dict()
    assert len(found) > 50
    assert all(torch.equal(value, beginning[name]) for name, value in found.items() if name != "pos_embed")
    other = task_of().model.state_dict()
    assert not torch.equal(other["cls_token"], beginning["cls_token"]), "with another head it is another encoder"


@pytest.mark.parametrize("target", ["online", "ema", "dino"])
def test_a_run_continues_to_the_last_bit(tmp_path: Path, files: dict[str, Any], target: str) -> None:
    options = (*files[target], "model.drop_path=0.2", "trainer.warmup_epochs=0", "trainer.save_every_steps=1")
    whole = run(tmp_path / "whole", *options, "trainer.max_steps=4")
    for steps in (2, 4):
        parts = run(tmp_path / "parts", *options, f"trainer.max_steps={steps}")
    one, other = weights(whole), weights(parts)
    for part in ("architecture", "model", "ema", "optimizer", "rng", "step", "loss", "task"):
        assert_same_bits(one[part], other[part], part)
    assert losses(whole) == losses(parts)


def test_a_random_teacher_is_the_same_when_a_run_continues(tmp_path: Path) -> None:
    options = ("target=clip", "target.model=tiny_clip.here", "target.pretrained=false", "trainer.warmup_epochs=0")
    whole = run(tmp_path / "whole", *options, "trainer.max_steps=3")
    for steps in (1, 3):
        parts = run(tmp_path / "parts", *options, f"trainer.max_steps={steps}")
    assert_same_bits(weights(whole)["model"], weights(parts)["model"])
    assert weights(parts)["task"]["teacher"]["source"] == "random"


def test_a_run_does_not_continue_with_another_teacher(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    options = ("target=dino", "target.model=tiny_dino.here", f"target.weights={file}")
    write(file, network(tiny_dino, 0).state_dict())
    folder = run(tmp_path, *options, "trainer.max_steps=1")
    before = weights(folder)["task"]["teacher"]["checksum"]
    write(file, network(tiny_dino, 1).state_dict())
    with pytest.raises(
        UserError, match=rf"started with another teacher: tiny_dino.here \({file}, checksum {before[:12]}\)"
    ):
        run(tmp_path, *options, "trainer.max_steps=2")
    assert sorted(losses(folder)) == [1]


def test_low_precision_applies_to_the_teacher(tmp_path: Path, files: dict[str, Any]) -> None:
    full = run(tmp_path / "full", *files["clip"], *NOW)
    low = run(tmp_path / "low", *files["clip"], *NOW, "trainer.precision=bf16")
    for step, loss in losses(full).items():
        assert losses(low)[step] == pytest.approx(loss, rel=2e-2)
        assert losses(low)[step] != loss


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    write(file, timm.create_model("test_vit", num_classes=0).state_dict())
    teacher = ("target=dino", "target.model=test_vit", f"target.weights={file}")
    options = (*SMALL, *teacher, "trainer.max_steps=3", "run_name=three")
    one = go(tmp_path / "one", *options)
    out = together(tmp_path, *options)
    assert out.count("teacher: test_vit") == 1
    other = tmp_path / "runs" / "three"
    for step, loss in losses(one).items():
        assert losses(other)[step] == pytest.approx(loss, rel=1e-6), step
    assert weights(one)["task"] == weights(other)["task"]


# Mistakes, and `semaim check`


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("semantic_map.source=teacher",),
            "semantic_map.source=teacher needs a teacher: choose target=dino, clip or tea",
        ),
        (("target=online", "semantic_map.source=teacher"), "semantic_map.source=teacher needs a teacher"),
        (("target=online", "target.channels=7"), "target.channels=7, but the encoder's tokens have 32"),
        (("target=online", "target.source=me"), "target.source=me: target.source must be online or ema"),
        (("target=dino", "target.patch_size=8"), "target.patch_size=8: target.patch_size follows data.patch_size, set"),
        (("model.image_size=64",), "model.image_size=64: model.image_size follows data.image_size, set that"),
        (("target=dino", "target.weights=/nowhere/dino.pth"), "target.weights=/nowhere/dino.pth does not exist"),
        (("target=dino", "target.model=nonsense"), "target.model=nonsense is not a vision transformer of timm"),
    ],
)
def test_a_mistake_is_reported_before_a_run(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises((UserError, InstantiationException)) as caught:
        run(tmp_path, *options, "trainer.max_steps=1")
    assert (explain(caught.value) or "").startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("group", "content", "message"),
    [
        ("target", "patch_size: 8", "the model has patches of 4 pixels, the target of 8: change data.patch_size"),
        ("model", "image_size: 64", "the model is for images of 64x64, the data are of 32x32: change data.image_size"),
    ],
)
def test_sizes_in_a_group_of_ones_own_must_fit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], group: str, content: str, message: str
) -> None:
    base = {"target": "pixels", "model": "aim_tiny"}[group]
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "own.yaml").write_text(f"defaults: [{base}, _self_]\n{content}\n")
    assert run_here(tmp_path, "--config-dir", "conf", f"{group}=own", *SMALL) == 2
    assert f"error: {message}" in capfd.readouterr().err


def test_an_order_without_a_map_ignores_its_source(tmp_path: Path) -> None:
    run(tmp_path, "permutation=raster", "semantic_map.source=teacher", "trainer.max_steps=1")


def test_check_counts_the_teacher_and_reads_its_weights(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = check_sweep([["target=online", "permutation=raster"]])
    frozen = check_sweep([[*files["dino"], "permutation=raster"]])
    assert plain.problems == frozen.problems == []
    own, found = plain.rows[0].cost, frozen.rows[0].cost
    task: Any = instantiate(composed(*files["dino"], "permutation=raster").task)
    assert found.flops == cost(task.model, 0, task.teacher.flops(64)).training_step
    assert own.flops == cost(instantiate(composed().model)(out_channels=96), 1).training_step
    assert task.teacher.parameters == sum(p.numel() for p in network(tiny_dino).parameters())
    head = (96 * 4 + 1) * (96 - 24)  # the difference in predicted channels
    assert own.parameters - found.parameters == head
    moments, gradient, weight = 2, 1, 1
    saved_by_a_smaller_head = 4 * head * (moments + gradient + weight) + 32 * 64 * 2 * 4 * (96 - 24)
    assert found.memory == own.memory - saved_by_a_smaller_head + 4 * task.teacher.parameters
    other = "does not hold the weights of target.model=tiny_dino.here"
    for option, said in (("target.weights=gone.pth", "gone.pth does not exist"), (files["clip"][2], other)):
        (problem,) = check_sweep([["target=dino", "target.model=tiny_dino.here", option]]).problems
        assert said in problem
    assert list(tmp_path.iterdir()) == []
