"""Parameter groups, learning-rate scaling and the schedule against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from semaim.errors import UserError
from semaim.optimizers import Optimization, lr_at, parameter_groups, scaled_lr, set_lr

PEAK, FLOOR, WARMUP, TOTAL = 1.6e-3, 1e-5, 40, 840


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_every_parameter_is_in_exactly_one_group(tiny_model, head):
    model = tiny_model(head=head)
    decay, rest = parameter_groups(model, 0.05)
    in_groups = [id(p) for group in (decay, rest) for p in group["params"]]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(p) for p in model.parameters()}
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    for group, one_dimensional in ((decay, False), (rest, True)):
        assert all((p.ndim == 1) == one_dimensional for p in group["params"]), names
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in rest["params"])


def test_the_class_token_decays_and_positions_are_no_parameter(tiny_model):
    model = tiny_model()
    decay, _ = parameter_groups(model, 0.05)
    assert any(p is model.cls_token for p in decay["params"])
    assert any(p is model.patch_embed.proj.weight for p in decay["params"])
    assert "pos_embed" not in dict(model.named_parameters())


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model[0].weight.requires_grad_(False)
    (only,) = parameter_groups(model, 0.05)
    assert [id(p) for p in only["params"]] == [id(model[0].bias), id(model[1].weight), id(model[1].bias)]
    assert only["weight_decay"] == 0.0


def test_decay_alone_moves_only_the_decaying_parameters(tiny_model):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimization = Optimization(partial(torch.optim.AdamW, lr=0.1), base_lr=2e-4, min_lr=0.0, weight_decay=0.5)
    optimizer = optimization.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6, atol=0), name
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_scaling_of_the_recipes():
    assert scaled_lr(2e-4, 2048) == pytest.approx(1.6e-3, rel=1e-12)
    assert scaled_lr(2e-4, 256) == 2e-4
    assert scaled_lr(5e-4, 1024) == pytest.approx(2e-3, rel=1e-12)
    assert scaled_lr(0.1, 64) == pytest.approx(0.025, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 4e-5),  # 1.6e-3 / 40
        (20, 8e-4),  # half of the warm-up
        (39, 1.56e-3),
        (40, 1.6e-3),  # the peak
        (240, 1e-5 + 1.59e-3 * 0.8535533905932737),  # a quarter of the cosine: (1 + sqrt(1/2)) / 2
        (440, 8.05e-4),  # half of the cosine: the mean of peak and floor
        (640, 1e-5 + 1.59e-3 * 0.14644660940672627),
        (839, 1e-5 + 1.59e-3 * 3.855314e-6),  # the last step: sin(pi / 1600) squared
        (840, 1e-5),
    ],
)
def test_schedule_by_hand(step, expected):
    assert lr_at(step, PEAK, FLOOR, WARMUP, TOTAL) == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_schedule_rises_then_falls():
    lrs = [lr_at(step, PEAK, FLOOR, WARMUP, TOTAL) for step in range(TOTAL + 1)]
    assert all(a < b for a, b in itertools.pairwise(lrs[: WARMUP + 1]))
    assert all(a > b for a, b in itertools.pairwise(lrs[WARMUP:]))
    assert max(lrs) == lrs[WARMUP] == PEAK


def test_schedule_without_warm_up_and_with_nothing_else():
    assert lr_at(0, PEAK, FLOOR, 0, 100) == PEAK
    assert lr_at(50, PEAK, 0.0, 0, 100) == pytest.approx(PEAK / 2, rel=1e-12)
    assert lr_at(9, PEAK, FLOOR, 10, 10) == pytest.approx(0.9 * PEAK, rel=1e-12)
    assert lr_at(10, PEAK, FLOOR, 10, 10) == PEAK  # one past the end, and no division by zero


def test_optimization_scales_by_the_batch():
    optimization = Optimization(torch.optim.AdamW, base_lr=2e-4, min_lr=FLOOR, weight_decay=0.05)
    assert optimization.lr(40, 2048, WARMUP, TOTAL) == pytest.approx(1.6e-3, rel=1e-12)
    assert optimization.lr(440, 2048, WARMUP, TOTAL) == pytest.approx(8.05e-4, rel=1e-12)
    assert optimization.lr(20, 64, WARMUP, TOTAL) == pytest.approx(2.5e-5, rel=1e-12)
    assert math.isclose(optimization.lr(840, 64, WARMUP, TOTAL), FLOOR)  # the floor is not scaled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_lr": 0.0}, r"optimizer\.base_lr=0\.0 must be positive"),
        ({"base_lr": -1e-4}, r"optimizer\.base_lr=-0\.0001 must be positive"),
        ({"min_lr": -1e-6}, r"optimizer\.min_lr=-1e-06 .*not negative"),
        ({"weight_decay": -0.05}, r"optimizer\.weight_decay=-0\.05 not negative"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Optimization(torch.optim.AdamW, **{"base_lr": 2e-4, "min_lr": 0.0, "weight_decay": 0.05, **options})
