"""Feature targets: what is predicted, and which network runs a pass for it.

Shapes: B images, L patches, N = 1 + L tokens (cls first), D width, P channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

import semaim
from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.data.image_data import ImageData
from semaim.data.image_sets import Splits
from semaim.data.transforms import evaluation, pretraining
from semaim.models.aim import AIM
from semaim.models.flops import cost
from semaim.permutations import Attention
from semaim.semantics import SemanticMap
from semaim.targets import EncoderFeatures, Features
from semaim.tasks.pretrain import Pretraining
from semaim.teachers import Teacher
from semaim.training.state import TrainingState
from support.commands import SMALL
from support.evaluating import noise
from support.golden import golden, relative
from support.in_process import composed
from support.paths import GOLDEN_FILES
from support.targets import ORDERS, task_of, with_small_teachers

SOURCES = {"pixels": None, "online": "online", "ema": "ema", "dino": "teacher", "clip": "teacher"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Options of each target, with a small teacher if it has one."""
    return with_small_teachers(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of passes of each network: "online", "ema" (never in training mode) and "teacher"."""
    made: Counter[str] = Counter()

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: Any, images_BCHW: Tensor) -> Any:
            made["teacher" if isinstance(self, Teacher) else "online" if self.training else "ema"] += 1
            assert not torch.is_grad_enabled()
            return method(self, images_BCHW)

        return counted

    # A teacher's pass with attention calls the pass without.
    for kind, name in ((AIM, "encode"), (AIM, "encode_with_attention"), (Teacher, "encode")):
        monkeypatch.setattr(kind, name, counting(getattr(kind, name)))
    return made


# Predicted values


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
    if target == "online":  # with gradient flow the result differs
        by_cosine(task.model.predict(batch.images_BCHW, order_BL), tokens_BLD).mean().backward()
        name = "blocks.3.mlp.fc2.weight"
        assert (gradients(task.model)[name] - expected[name]).norm() > 0.1 * expected[name].norm()


class Given(Attention):
    """A fixed order that records the map passed to it."""

    def __init__(self, order_BL: Tensor) -> None:
        self.order_BL = order_BL

    def order(self, grid: Any, noise_BK: Tensor, semantic_map_BL: Tensor | None = None) -> Tensor:
        self.map_BL = semantic_map_BL
        return self.order_BL


class Stored(Teacher):
    """A teacher with fixed tokens."""

    def __init__(self, tokens_BNP: Tensor) -> None:
        Features.__init__(self, tokens_BNP.shape[-1])
        self.tokens_BNP, self.patch_size = tokens_BNP, 16

    def encode(self, images_BCHW: Tensor) -> Tensor:
        return self.tokens_BNP


@pytest.mark.parametrize(
    "path", [path for path in GOLDEN_FILES if path.stem.startswith("features")], ids=lambda p: p.stem
)
@pytest.mark.parametrize("source", ["auto", "online"])
def test_the_task_gives_the_golden_losses(path: Path, source: Any) -> None:
    """The authors' numbers through a whole training step. Their order follows the encoder's map."""
    file = golden(path)
    splits = Splits(noise(), None, None, [])
    data = ImageData(lambda: splits, None, 224, 16, pretraining(224), evaluation(224, 1.0), 0, 60.0, 0, None, 0)
    usual, order = composed(*SMALL), Given(file.order("attention_center"))
    task = Pretraining(
        model=lambda **_: file.model,
        permutation=order,
        semantic_map=SemanticMap("cls", source),
        target=Stored(file["target_tokens"]),
        optimizer=instantiate(usual.optimizer),
        data=data,
        trainer=instantiate(usual.trainer),
        evaluators={},
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
    beside = ["evaluators=[linear]"] if linear else []
    config = composed(*SMALL, *files[target], "trainer.ema=true", *beside)
    two = product(("attention_center", "raster"), ("cls", "self"), ("auto", "online", "ema", "teacher"))
    for order, kind, source in sorted({*two, *product(ORDERS, ("cls",), ("auto",))}):
        config.permutation = ORDERS[order]
        config.semantic_map.update(kind=kind, source=source)
        needs_map = order.startswith("attention")
        if source == "teacher" and SOURCES[target] != "teacher" and needs_map:
            continue  # this combination is refused
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
        assert task.networks == expected


def test_costs_match_the_passes(files: dict[str, Any]) -> None:
    for target, source in SOURCES.items():
        task = task_of(*files[target], "semantic_map.source=online", "permutation=attention")
        teacher = 0 if task.teacher is None else task.teacher.flops(64)
        encoder_passes = 2 if source == "ema" else 1
        assert task.spent == cost(task.model, encoder_passes, teacher)
        alone = cost(task.model, 0)
        assert task.spent.training_step == alone.training_step + encoder_passes * alone.encode + teacher
        assert (teacher > 0) == (source == "teacher")


def test_encoder_features_are_features() -> None:
    target = EncoderFeatures("ema", 96)
    assert (target.channels, target.network_name) == (96, "ema")
