"""Feature targets: what is predicted, who makes a pass for it, and that a run with them is as sound as any other.

Shapes: B images, L patches, N = 1 + L tokens (cls first), D width, P channels.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

import semaim
from semaim.config.compose import CONF, explain
from semaim.core.seeding import StepNoise
from semaim.data.image_data import ImageData
from semaim.data.loading import Batch
from semaim.data.sources import Splits
from semaim.data.transforms import evaluation, pretraining
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.flops import cost
from semaim.permutations import Attention
from semaim.preflight.check import check_sweep
from semaim.semantics import SemanticMap
from semaim.targets import EncoderFeatures, Features
from semaim.tasks.pretrain import Pretraining
from semaim.teachers import Teacher
from semaim.training.state import TrainingState
from support.commands import SMALL, journal, losses, succeed
from support.evaluating import assert_same_bits, noise
from support.golden import golden, relative
from support.in_process import composed, go, run
from support.paths import GOLDEN_FILES
from support.teaching import network, tiny_clip, tiny_dino, visual, write

ORDERS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "permutation").glob("*.yaml"))}
NOW = ("trainer.warmup_epochs=0", "trainer.max_steps=2")
SOURCES = {"pixels": None, "online": "online", "ema": "ema", "dino": "teacher", "clip": "teacher"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Options of each target, with a small teacher where it has one."""
    folder = tmp_path_factory.mktemp("weights")
    dino = write(folder / "dino.pth", network(tiny_dino).state_dict())
    clip = write(folder / "clip.pth", visual(network(tiny_clip)))
    return {
        "pixels": (),
        "online": ("target=online",),
        "ema": ("target=ema", "trainer.ema_decay=[0.9,0.9]"),
        "dino": ("target=dino", "target.model=tiny_dino.here", f"target.weights={dino}"),
        "clip": ("target=clip", "target.model=tiny_clip.here", f"target.weights={clip}"),
    }


def weights(folder: Path) -> dict[str, Any]:
    return torch.load(sorted((folder / "checkpoints").glob("*.pt"))[-1], weights_only=True)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many passes each network makes: "online", "ema" (which is never in training mode) and "teacher"."""
    made: Counter[str] = Counter()

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: Any, images_BCHW: Tensor) -> Any:
            made["teacher" if isinstance(self, Teacher) else "online" if self.training else "ema"] += 1
            assert not torch.is_grad_enabled()
            return method(self, images_BCHW)

        return counted

    # A teacher's pass with attention makes that without.
    for kind, name in ((AIM, "encode"), (AIM, "encode_with_attention"), (Teacher, "encode")):
        monkeypatch.setattr(kind, name, counting(getattr(kind, name)))
    return made


# What is predicted


def task_of(*overrides: str) -> Pretraining:
    """The task of a command line, with small weights of a fixed seed."""
    torch.manual_seed(0)
    return instantiate(composed(*SMALL, *overrides).task, _convert_="all")


def one_batch(task: Pretraining, images_BCHW: Tensor) -> tuple[Batch, TrainingState, StepNoise]:
    batch = Batch(images_BCHW, torch.zeros(len(images_BCHW)).long(), torch.arange(len(images_BCHW)), 0, [])
    ema = ModelEmaV3(task.model) if task.trainer.ema else None
    return batch, TrainingState(task.model, task.model, ema, None, None), StepNoise(0, 0, len(images_BCHW))  # type: ignore[arg-type]


def gradients(model: AIM) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def by_cosine(prediction_BLP: Tensor, target_BLP: Tensor) -> Tensor:
    """2 - 2 cos, mean over patches, of each image."""
    return (2 - 2 * F.cosine_similarity(prediction_BLP, target_BLP, dim=-1)).mean(1)


@pytest.mark.parametrize("target", ["online", "ema"])
def test_no_gradient_flows_through_the_encoders_own_tokens(target: str, images: Callable[..., Tensor]) -> None:
    task = task_of(f"target={target}", "permutation=raster")
    batch, state, step_noise = one_batch(task, images(4))
    if state.ema is not None:
        with torch.no_grad():
            for parameter in state.ema.module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    teacher = task.model if state.ema is None else state.ema.module
    tokens_BLD = teacher.encode(batch.images_BCHW)[:, 1:]
    order_BL = torch.arange(64).expand(4, -1)

    loss_B = task.loss(batch, state, step_noise)
    loss_B.mean().backward()
    found = gradients(task.model)
    expected_B = by_cosine(task.model.predict(batch.images_BCHW, order_BL), tokens_BLD.detach())
    expected_B.mean().backward()
    expected = gradients(task.model)
    assert loss_B.tolist() == pytest.approx(expected_B.tolist(), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-7, name
    assert all(p.grad is None for p in teacher.parameters()) or target == "online"
    if target == "online":  # what it would be if it did flow: not the same
        by_cosine(task.model.predict(batch.images_BCHW, order_BL), tokens_BLD).mean().backward()
        name = "blocks.3.mlp.fc2.weight"
        assert (gradients(task.model)[name] - expected[name]).norm() > 0.1 * expected[name].norm()


class Given(Attention):
    """An order that is given, and keeps the map that it was to follow."""

    def __init__(self, order_BL: Tensor) -> None:
        self.order_BL = order_BL

    def order(self, grid: Any, noise_BK: Tensor, semantic_map_BL: Tensor | None = None) -> Tensor:
        self.map_BL = semantic_map_BL
        return self.order_BL


class Stored(Teacher):
    """A teacher whose tokens are given."""

    def __init__(self, tokens_BNP: Tensor) -> None:
        Features.__init__(self, tokens_BNP.shape[-1])
        self.tokens_BNP, self.patch_size = tokens_BNP, 16

    def encode(self, images_BCHW: Tensor) -> Tensor:
        return self.tokens_BNP


@pytest.mark.parametrize(
    "path", [path for path in GOLDEN_FILES if path.stem.startswith("features")], ids=lambda p: p.stem
)
@pytest.mark.parametrize("source", ["auto", "online"])
def test_golden_losses_come_out_of_the_task(path: Path, source: Any) -> None:
    """The authors' numbers through all that a training step does. Their order follows the encoder's map."""
    file = golden(path)
    splits = Splits(noise(), None, None, [])
    data = ImageData(lambda: splits, None, 224, 16, pretraining(224), evaluation(224, 1.0), 0, 0, None, 0)
    usual, order = composed(*SMALL), Given(file.order("attention_center"))
    task = Pretraining(
        model=lambda **_: file.model,
        permutation=order,
        semantic_map=SemanticMap("cls", source),
        target=Stored(file["target_tokens"]),
        optimizer=instantiate(usual.optimizer),
        data=data,
        trainer=instantiate(usual.trainer),
        online_knn=None,
        knn_every_epochs=None,
        online_linear_lr=None,
        pictures=None,
        checkpoint=None,
    )
    loss_B = task.loss(*one_batch(task, file.images_BCHW))
    assert relative(loss_B, file["attention_center/loss_per_patch"].mean(1)) <= 1e-5
    assert relative(loss_B.mean(), file["attention_center/loss"]) <= 1e-5
    if source == "online":
        expected_BL = file["semantic_map/cls"]
    else:
        tokens_BNP = file["target_tokens"].double().numpy()
        tokens_BNP /= np.linalg.norm(tokens_BNP, axis=-1, keepdims=True)
        cosines_BL = np.einsum("bp,blp->bl", tokens_BNP[:, 0], tokens_BNP[:, 1:])
        expected_BL = torch.from_numpy(np.exp(cosines_BL) / np.exp(cosines_BL).sum(1, keepdims=True))
    assert relative(order.map_BL, expected_BL) <= 1e-5


@pytest.mark.parametrize("target", ["dino", "clip"])
@pytest.mark.parametrize("kind", ["cls", "gap", "self"])
def test_the_map_is_made_of_the_teachers_tokens(
    files: dict[str, Any], images: Callable[..., Tensor], target: str, kind: str
) -> None:
    task = task_of(*files[target], f"semantic_map={kind}", "permutation=attention")
    task.teacher.load()
    seen = task.permutation = Given(torch.arange(64).expand(2, -1))
    batch, state, step_noise = one_batch(task, images(2))
    task.loss(batch, state, step_noise)
    tokens_BNP, attention_BL = task.teacher.encode_with_attention(batch.images_BCHW)
    expected_BL = attention_BL if kind == "self" else semaim.semantics.semantic_map(tokens_BNP, kind)
    assert (seen.map_BL - expected_BL).abs().max() <= 1e-7
    with torch.no_grad():
        own_BL = semaim.semantics.semantic_map(task.model.encode(batch.images_BCHW))
    assert (seen.map_BL - own_BL).abs().max() > 1e-4


# Passes


@pytest.mark.parametrize("target", SOURCES)
@pytest.mark.parametrize("linear", [False, True])
def test_each_network_makes_one_pass_a_batch_at_most_in_any_order(
    files: dict[str, Any], images: Callable[..., Tensor], passes: Counter[str], target: str, linear: bool
) -> None:
    beside = ["task.online_linear_lr=0.1"] if linear else []
    config = composed(*SMALL, *files[target], "trainer.ema=true", *beside)
    two = product(("attention_center", "raster"), ("cls", "self"), ("auto", "online", "ema", "teacher"))
    for order, kind, source in sorted({*two, *product(ORDERS, ("cls",), ("auto",))}):
        config.permutation = ORDERS[order]
        config.semantic_map.update(kind=kind, source=source)
        needs_map = order.startswith("attention")
        if source == "teacher" and SOURCES[target] != "teacher" and needs_map:
            continue  # which is refused
        task = instantiate(config.task, _convert_="all")
        if task.teacher is not None:
            task.teacher.load()
        passes.clear()
        loss_B = task.loss(*one_batch(task, images(2)))
        assert ((loss_B > 0) & (loss_B < 4)).all(), (kind, order, source)
        expected = {SOURCES[target]} - {None}
        if needs_map:
            expected.add((SOURCES[target] or "online") if source == "auto" else source)
        if linear:
            expected.add("online")
        assert passes == dict.fromkeys(expected, 1), (kind, order, source)
        assert task.sources == expected


def test_costs_are_those_of_the_passes(files: dict[str, Any]) -> None:
    for target, source in SOURCES.items():
        task = task_of(*files[target], "semantic_map.source=online", "permutation=attention")
        teacher = 0 if task.teacher is None else task.teacher.flops(64)
        encoder_passes = 2 if source == "ema" else 1
        assert task.spent() == cost(task.model, encoder_passes, teacher)
        alone = cost(task.model, 0)
        assert task.spent().training_step == alone.training_step + encoder_passes * alone.encode + teacher
        assert (teacher > 0) == (source == "teacher")


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
    recipe = instantiate(composed("target=ema", "trainer=semaim").trainer)
    assert recipe.ema
    assert [recipe.ema_decay_at(epoch) for epoch in (0, 50, 100, 800)] == pytest.approx(
        [0.999, 0.99945, 0.9999, 0.9999]
    )


@pytest.mark.parametrize("target", ["dino", "clip"])
def test_a_teacher_stays_as_it_was(
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
    assert saved["task"] == {"teacher": teacher.identity}
    own = semaim.load_model(folder)
    assert saved["model"].keys() == own.state_dict().keys()
    assert len(saved["optimizer"]["state"]) == sum(1 for _ in own.parameters())
    tags: dict[str, str] = {}
    for line in journal(folder):
        tags |= line.get("tags", {})
    assert {f"teacher.{key}": value for key, value in teacher.identity.items()}.items() <= tags.items()


@pytest.mark.parametrize("target", ["online", "ema", "dino", "clip"])
def test_what_a_run_makes_can_be_loaded_and_evaluated(tmp_path: Path, files: dict[str, Any], target: str) -> None:
    folder = run(tmp_path, *files[target], *NOW)
    model = semaim.load_model(folder)
    width = {"online": 32, "ema": 32, "dino": 24, "clip": 20}[target]
    assert model.architecture["out_channels"] == width
    prediction_BLP = model.predict(torch.randn(1, 3, 32, 32), torch.arange(64)[None])
    assert prediction_BLP.shape == (1, 64, width)
    evaluate = ("task=knn", "tracking=none", "task.ks=[10]", "task.features_dir=null", "run_name=knn")
    knn = go(tmp_path / "knn", *evaluate, f"checkpoint={folder}")
    assert set(json.loads((knn / "status.json").read_text())["result"]) == {"knn_10_cls", "knn_10_mean"}


def test_evaluations_need_no_teacher(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What checkpoint=random means depends on the target's channels; for them no weights are read."""
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
        UserError, match=rf"begun with another teacher: tiny_dino.here \({file}, checksum {before[:12]}\)"
    ):
        run(tmp_path, *options, "trainer.max_steps=2")
    assert sorted(losses(folder)) == [1]


def test_a_low_precision_is_the_teachers_too(tmp_path: Path, files: dict[str, Any]) -> None:
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
    two = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "semaim.run")
    out = succeed(tmp_path, *options, launcher=two)
    assert out.count("teacher: test_vit") == 1
    other = tmp_path / "runs" / "three"
    for step, loss in losses(one).items():
        assert losses(other)[step] == pytest.approx(loss, rel=1e-6), step
    assert weights(one)["task"] == weights(other)["task"]


# Mistakes, and what is told before a run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("target=ema", "trainer.ema=false"),
            "target=ema predicts tokens of the moving average, but trainer.ema=false",
        ),
        (("semantic_map.source=ema",), "semantic_map.source=ema needs the moving average: set trainer.ema=true"),
        (
            ("semantic_map.source=teacher",),
            "semantic_map.source=teacher needs a teacher: choose target=dino or target=cl",
        ),
        (("target=online", "semantic_map.source=teacher"), "semantic_map.source=teacher needs a teacher"),
        (("target=online", "target.channels=7"), "target.channels=7, but the encoder's tokens have 32"),
        (("target=online", "target.source=me"), "target.source=me is unknown: choose online or ema"),
        (
            ("target=dino", "target.patch_size=8"),
            "the model has patches of 4 pixels, the target of 8: change data.patch_",
        ),
        (("target.patch_size=8",), "the model has patches of 4 pixels, the target of 8: change data.patch_size"),
        (("model.image_size=64",), "the model is for images of 64x64, the data are of 32x32: change data.image_size"),
        (("target=dino", "target.weights=/nowhere/dino.pth"), "target.weights=/nowhere/dino.pth does not exist"),
        (("target=dino", "target.model=nonsense"), "target.model=nonsense is not a vision transformer of timm's"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises((UserError, InstantiationException)) as caught:
        run(tmp_path, *options, "trainer.max_steps=1")
    assert (explain(caught.value) or "").startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_an_order_without_a_map_minds_no_source(tmp_path: Path) -> None:
    run(tmp_path, "permutation=raster", "semantic_map.source=teacher", "trainer.max_steps=1")


def test_a_look_beforehand_counts_the_teacher_and_reads_its_weights(
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
    head = (96 * 4 + 1) * (96 - 24)  # what one predicts more than the other
    assert own.parameters - found.parameters == head
    moments, gradient, weight = 2, 1, 1
    saved_by_a_smaller_head = 4 * head * (moments + gradient + weight) + 32 * 64 * 2 * 4 * (96 - 24)
    assert found.memory == own.memory - saved_by_a_smaller_head + 4 * task.teacher.parameters
    other = "does not hold the weights of target.model=tiny_dino.here"
    for option, said in (("target.weights=gone.pth", "gone.pth does not exist"), (files["clip"][2], other)):
        (problem,) = check_sweep([["target=dino", "target.model=tiny_dino.here", option]]).problems
        assert said in problem
    assert list(tmp_path.iterdir()) == []


def test_encoder_features_are_features() -> None:
    target = EncoderFeatures("ema", 96)
    assert (target.channels, target.source) == (96, "ema")
