"""Parameter groups, learning-rate scaling and the schedule, compared with numbers computed by hand."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from timm.optim import param_groups_layer_decay
from torch import nn

from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError
from semaim.models.heads import LinearHeads, head_groups
from semaim.models.vit import vit_of
from semaim.training.optimizers import Optimization, layer_decay_groups, lr_at, parameter_groups, scaled_lr, set_lr
from semaim.training.schedules import MultiStep
from support.in_process import composed

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
    optimization = Optimization(
        partial(torch.optim.AdamW, lr=0.1), parameter_groups, base_lr=2e-4, min_lr=0.0, weight_decay=0.5
    )
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


def test_schedule_without_warm_up_and_with_warm_up_alone():
    assert lr_at(0, PEAK, FLOOR, 0, 100) == PEAK
    assert lr_at(50, PEAK, 0.0, 0, 100) == pytest.approx(PEAK / 2, rel=1e-12)
    assert lr_at(9, PEAK, FLOOR, 10, 10) == pytest.approx(0.9 * PEAK, rel=1e-12)
    assert lr_at(10, PEAK, FLOOR, 10, 10) == PEAK  # one past the end, and no division by zero


def test_the_cosine_has_the_bits_that_it_had_as_one_formula():
    for step in range(WARMUP, TOTAL + 1):
        progress = (step - WARMUP) / (TOTAL - WARMUP)
        former = FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
        assert lr_at(step, PEAK, FLOOR, WARMUP, TOTAL) == former


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (20, 0.8), (40, 1.6), (419, 1.6), (420, 0.4), (734, 0.4), (735, 0.1), (839, 0.1)],
)
def test_a_multi_step_schedule_by_hand(step, expected):
    """The milestones are at half of 840 steps and at seven eighths, warm-up included."""
    schedule = MultiStep(milestones=[0.5, 0.875], gamma=0.25)
    assert lr_at(step, 1.6, 0.0, WARMUP, TOTAL, schedule) == pytest.approx(expected, rel=1e-12)


def test_a_multi_step_schedule_falls_towards_min_lr():
    schedule = MultiStep(milestones=[0.5], gamma=0.25)
    assert [lr_at(step, 1.7, 0.1, 0, 100, schedule) for step in (49, 50)] == pytest.approx([1.7, 0.5], rel=1e-12)


def test_a_milestone_is_rounded_to_a_step():
    """0.07 of 100 is a little more than 7 in floating-point numbers."""
    schedule = MultiStep(milestones=[0.07], gamma=0.1)
    assert [schedule(step, 0, 100) for step in (6, 7)] == [1.0, 0.1]


def test_the_recipe_of_simmim_falls_at_epoch_700_of_800():
    optimization = instantiate(composed("optimizer=adamw_simmim").optimizer, _convert_="all")
    lrs = [optimization.lr(epoch * 625, 2048, 10 * 625, 800 * 625) for epoch in (5, 10, 699, 700, 799)]
    assert lrs == pytest.approx([2e-4, 4e-4, 4e-4, 4e-5, 4e-5], rel=1e-12)
    assert optimization.lr(700 * 625 - 1, 2048, 10 * 625, 800 * 625) == pytest.approx(4e-4, rel=1e-12)
    (decay, *_) = optimization.build(nn.Linear(2, 2)).param_groups
    assert (tuple(decay["betas"]), decay["weight_decay"]) == ((0.9, 0.999), 0.05)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"optimizer.schedule.milestones={wrong}", "optimizer.schedule.milestones must be a list of increasing numbers "
         "above 0 and below 1, such as [0.875]")
        for wrong in ("[0.9,0.5]", "[0.5,0.5]", "[0.0,0.5]", "[1.0]", "[]", "0.5")
    ]
    + [
        (f"optimizer.schedule.gamma={wrong}", "optimizer.schedule.gamma must be a number above 0 and up to 1, such as "
         "0.1")
        for wrong in ("0", "-0.1", "2")
    ],
)  # fmt: skip
def test_what_a_schedule_cannot_be_is_one_message(option, message):
    with pytest.raises(UserError) as caught:
        compose_run_spec(["optimizer=adamw_simmim", option])
    assert str(caught.value) == f"{option}: {message}"


def test_optimization_scales_by_the_batch():
    optimization = Optimization(torch.optim.AdamW, parameter_groups, base_lr=2e-4, min_lr=FLOOR, weight_decay=0.05)
    assert optimization.lr(40, 2048, WARMUP, TOTAL) == pytest.approx(1.6e-3, rel=1e-12)
    assert optimization.lr(440, 2048, WARMUP, TOTAL) == pytest.approx(8.05e-4, rel=1e-12)
    assert optimization.lr(20, 64, WARMUP, TOTAL) == pytest.approx(2.5e-5, rel=1e-12)
    assert math.isclose(optimization.lr(840, 64, WARMUP, TOTAL), FLOOR)  # the floor is not scaled


def test_settings_unknown_to_the_optimizer_are_named():
    for wrong, reason in (({"betas": (0.9, 1.5)}, "beta"), ({"momentum": 0.9}, "momentum")):
        optimizer = partial(torch.optim.AdamW, **wrong)
        optimization = Optimization(optimizer, parameter_groups, base_lr=2e-4, min_lr=0.0, weight_decay=0.05)
        with pytest.raises(UserError, match=rf"rejects its settings in optimizer\.optimizer: .*{reason}"):
            optimization.build(nn.Linear(2, 2))


# Layer decay. The table is written out here, independent of the code that reads the names: the layer of
# each parameter of a vision transformer with four blocks, and whether it decays.

OF_A_BLOCK = {
    "norm1.weight": False,
    "norm1.bias": False,
    "attn.qkv.weight": True,
    "attn.qkv.bias": False,
    "attn.proj.weight": True,
    "attn.proj.bias": False,
    "norm2.weight": False,
    "norm2.bias": False,
    "mlp.fc1.weight": True,
    "mlp.fc1.bias": False,
    "mlp.fc2.weight": True,
    "mlp.fc2.bias": False,
}
BEFORE_THE_NORM = {
    "cls_token": (0, False),
    "pos_embed": (0, False),
    "patch_embed.proj.weight": (0, True),
    "patch_embed.proj.bias": (0, False),
    **{f"blocks.0.{name}": (1, decays) for name, decays in OF_A_BLOCK.items()},
    **{f"blocks.1.{name}": (2, decays) for name, decays in OF_A_BLOCK.items()},
    **{f"blocks.2.{name}": (3, decays) for name, decays in OF_A_BLOCK.items()},
    **{f"blocks.3.{name}": (4, decays) for name, decays in OF_A_BLOCK.items()},
}
HEAD = {"head.weight": (5, True), "head.bias": (5, False)}
TABLES = {
    "mean": {**BEFORE_THE_NORM, "fc_norm.weight": (5, False), "fc_norm.bias": (5, False), **HEAD},
    "cls": {**BEFORE_THE_NORM, "norm.weight": (5, False), "norm.bias": (5, False), **HEAD},
}
SCALES = {0: 0.03125, 1: 0.0625, 2: 0.125, 3: 0.25, 4: 0.5, 5: 1.0}  # 0.5^(4 + 1 - i)


def by_name(model, groups):
    """The group of each parameter; asserts that none is in two groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_layer_decay_of_every_parameter(tiny_model, pool):
    model = vit_of(tiny_model(), 10, pool)
    groups = by_name(model, layer_decay_groups(model, 0.05, 0.5))
    assert groups.keys() == TABLES[pool].keys() == dict(model.named_parameters()).keys()
    for name, (layer, decays) in TABLES[pool].items():
        assert groups[name]["lr_scale"] == SCALES[layer], name
        assert groups[name]["weight_decay"] == (0.05 if decays else 0.0), name


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_learning_rate_of_every_parameter_after_it_is_set(tiny_model, pool):
    model = vit_of(tiny_model(), 10, pool)
    optimization = Optimization(
        torch.optim.SGD, partial(layer_decay_groups, layer_decay=0.5), base_lr=5e-4, min_lr=1e-6, weight_decay=0.0
    )
    optimizer = optimization.build(model)
    for lr in (0.8, 0.2):  # set twice: a factor must not be applied again
        set_lr(optimizer, lr)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    groups = by_name(model, optimizer.param_groups)
    for name, parameter in model.named_parameters():
        lr = 0.2 * SCALES[TABLES[pool][name][0]]
        assert groups[name]["lr"] == pytest.approx(lr, rel=1e-12), name
        assert torch.allclose(before[name] - parameter, torch.full_like(parameter, lr), rtol=0, atol=1e-6), name


def test_the_recipe_of_fine_tuning(tiny_model):
    optimization = instantiate(composed("task=finetune", "checkpoint=x").optimizer, _convert_="all")
    model = vit_of(tiny_model(depth=12), 10, "mean")
    optimizer = optimization.build(model)
    set_lr(optimizer, 2e-3)
    groups = by_name(model, optimizer.param_groups)
    for name, layer in (("pos_embed", 0), ("blocks.0.norm1.bias", 1), ("blocks.11.mlp.fc2.weight", 12)):
        assert groups[name]["lr"] == pytest.approx(2e-3 * 0.65 ** (13 - layer), rel=1e-12)
    assert groups["patch_embed.proj.weight"]["lr"] == pytest.approx(7.39441e-6, rel=1e-5)
    assert groups["head.weight"]["lr"] == groups["fc_norm.weight"]["lr"] == 2e-3
    assert groups["head.weight"]["weight_decay"] == 0.05
    assert tuple(groups["head.weight"]["betas"]) == (0.9, 0.999)


def test_layer_decay_agrees_with_timm(tiny_model):
    """With the mean of the patch tokens there is no norm after the blocks, where the rules differ."""
    model = vit_of(tiny_model(), 10, "mean")
    theirs = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.65)
    ours, theirs = by_name(model, layer_decay_groups(model, 0.05, 0.65)), by_name(model, theirs)
    assert ours.keys() == theirs.keys()
    for name, group in theirs.items():
        assert ours[name]["lr_scale"] == pytest.approx(group["lr_scale"], rel=1e-12), name
        assert ours[name]["weight_decay"] == group["weight_decay"], name


def test_frozen_parameters_are_in_no_group_of_a_layer(tiny_model):
    model = vit_of(tiny_model(), 10, "mean")
    model.pos_embed.requires_grad_(False)
    model.blocks[1].requires_grad_(False)
    model.head.weight.requires_grad_(False)
    groups = layer_decay_groups(model, 0.05, 0.5)
    frozen = {"pos_embed", "head.weight", *(f"blocks.1.{name}" for name in OF_A_BLOCK)}
    assert by_name(model, groups).keys() == TABLES["mean"].keys() - frozen
    assert all(group["params"] for group in groups)
    assert not [group for group in groups if group["lr_scale"] == SCALES[2]]


def test_layer_decay_is_refused_where_there_are_no_layers():
    with pytest.raises(UserError, match=r"optimizer\.groups: a layer decay is for .*task=finetune"):
        layer_decay_groups(nn.Linear(3, 4), 0.05, 0.5)


# Heads


def test_groups_of_heads():
    model = LinearHeads(5, 3, kinds=2, lr_scales=[1.0, 0.3, 3.0])
    groups = by_name(model, head_groups(model, 0.01))
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert len(groups) == 2 * 6
    for s, scale in enumerate((1.0, 0.3, 3.0, 1.0, 0.3, 3.0)):
        assert groups[f"heads.{s}.weight"]["lr_scale"] == groups[f"heads.{s}.bias"]["lr_scale"] == scale
        assert groups[f"heads.{s}.weight"]["weight_decay"] == 0.01
        assert groups[f"heads.{s}.bias"]["weight_decay"] == 0.0


def test_groups_of_heads_are_refused_where_there_are_no_heads():
    with pytest.raises(UserError, match=r"optimizer\.groups"):
        head_groups(nn.Linear(3, 4), 0.0)
