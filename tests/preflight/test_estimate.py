"""Cost of runs, as estimated by `semaim check` before submission."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from semaim.config.follow_ups import follow_ups
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.flops import cost
from semaim.models.mae import MAE
from semaim.models.predictor import Predictor
from semaim.models.simmim import SimMIM
from semaim.preflight import check
from semaim.preflight.check import check_sweep
from semaim.training.memory import activations, moments, training_memory
from semaim.training.optimizers import Optimization, parameter_groups
from support.checking import command, one
from support.in_process import job


def test_the_default_command_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    header, row, nothing, last = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", header) == [
        "run", "encoder", "parameters", "FLOP/image", "steps", "images", "held out", "classes", "memory/process",
        "GPU-hours", "state",
    ]  # fmt: skip
    assert re.split(r"  +", row) == [
        "pretrain_digits_aim_tiny_attention_center_pixels", "452 k", "732 k", "370 M", "880", "1437", "360", "10",
        "98.6 MB", "0.0", "new",
    ]  # fmt: skip
    assert nothing == ""
    assert last == "OK: 1 run, 1 process each, about 0.0 GPU-hours"
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_those_of_the_real_model() -> None:
    real = AIM(48, 32, 4, embed_dim=96, depth=4, num_heads=3, query_depth=2)
    for order, needs_map in (("attention_center", True), ("raster", False)):
        (row,) = one(f"permutation={order}", "trainer.epochs=40").rows
        expected = cost(real, needs_map)
        assert row.cost is not None
        assert row.cost.encoder_parameters == expected.encoder_parameters == 452_352
        assert row.cost.parameters == sum(p.numel() for p in real.parameters()) == 731_760
        assert row.cost.flops == expected.training_step
        assert (row.cost.steps, row.cost.images) == (40 * 44, 40 * 44 * 32)
        weights, moments, kept = 4 * 731_760, 2, 2 + 1  # one more while the oldest still exists
        assert row.cost.checkpoints == weights * (1 + moments) * kept
        assert row.cost.memory == weights * (2 + moments) + 32 * activations(real, 4)


TINY: dict[str, Any] = {
    "out_channels": 48,
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
}
METHODS: dict[str, tuple[tuple[str, ...], Callable[[], Predictor]]] = {
    "segments": (("model.segments=5",), lambda: AIM(**TINY, query_depth=2, segments=5)),
    "skip connections": (
        ("model.segments=5", "model.skip_connections=true"),
        lambda: AIM(**TINY, query_depth=2, segments=5, skip_connections=True),
    ),
    "mae": (("model=mae_tiny",), lambda: MAE(**TINY, decoder_dim=48, decoder_depth=2, decoder_num_heads=3)),
    "simmim": (("model=simmim_tiny", "model.mask_unit=8"), lambda: SimMIM(**TINY, mask_unit=8)),
}


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_every_method(name: str) -> None:
    """Of the model as it computes: the encoder of a MAE sees 16 of 64 patches, its decoder all."""
    options, build = METHODS[name]
    (row,) = one("permutation=stochastic", *options).rows
    real = build()
    expected, parameters = cost(real, 0), sum(p.numel() for p in real.parameters())
    assert row.cost is not None
    assert (row.cost.parameters, row.cost.flops) == (parameters, expected.training_step)
    assert row.cost.memory == 4 * parameters * (2 + 2) + 32 * activations(real, 4)


def test_a_mae_costs_less_than_two_streams() -> None:
    """ViT-B at 224 pixels: a quarter of the encoder's operations, and those of the decoder, 3 x 19.5 GFLOP in all."""
    sizes = ("data.image_size=224", "data.patch_size=16", "trainer.precision=bf16", "permutation=stochastic")
    mae, aim = (one(*sizes, f"model={model}_base").rows[0].cost for model in ("mae", "aim"))
    assert mae is not None
    assert aim is not None
    assert mae.flops == pytest.approx(58.5e9, rel=1e-3)
    assert aim.flops == pytest.approx(214e9, rel=2e-3)
    assert mae.memory is not None
    assert aim.memory is not None
    assert mae.memory < aim.memory / 2


def test_hours_follow_from_operations_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(check.shutil, "disk_usage", return_value=mock.Mock(free=10**12)):
        assert command("model=aim_huge", "trainer.epochs=1000", "permutation=raster", "--tflops", "40") == 0
    with torch.device("meta"):
        huge = AIM(48, 32, 4, embed_dim=1280, depth=32, num_heads=16, query_depth=16)
    hours = cost(huge, False).training_step * 1000 * 44 * 32 / 40e12 / 3600
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"OK: 1 run, 1 process each, about {hours:.1f} GPU-hours"
    assert f"  {hours:.1f}  new" in said[1]
    assert hours > 3


def test_a_sweep_and_its_followers_have_a_row_each() -> None:
    points = [["then=[knn,linprobe]", f"seed={seed}", "model=aim_small"] for seed in (1, 2)]
    GlobalHydra.instance().hydra = under_way = mock.Mock()
    with mock.patch.object(check, "open_data", wraps=check.open_data) as opened:
        checked = check_sweep(points)
    assert GlobalHydra.instance().hydra is under_way  # a sweep may check itself before it starts
    GlobalHydra.instance().clear()
    assert opened.call_count == 1  # for six runs on the same data
    jobs = [each for point in points for each in (job(*point), *follow_ups(job(*point)))]
    assert [row.name for row in checked.rows] == [each.cfg.run_name for each in jobs]
    assert (checked.problems, checked.runs) == ([], 2)
    assert str(checked).splitlines()[-1].startswith("OK: 2 runs and 4 evaluations after, 1 process each, about 0.")
    first, knn, probe = (row.cost for row in checked.rows[:3])
    assert first is not None
    assert knn is not None
    assert probe is not None
    assert knn.encoder_parameters == probe.encoder_parameters == first.encoder_parameters  # not those of aim_tiny
    assert (knn.steps, knn.images, knn.flops) == (None, 1437 + 360, probe.flops)
    assert (probe.steps, probe.images) == (20 * 22, 20 * 22 * 64)


def adamw(**options: Any) -> Optimization:
    return Optimization(lambda groups: torch.optim.AdamW(groups, lr=1.0, **options), parameter_groups, 1.0, 0.0, 0.05)


def test_the_state_of_an_optimizer_has_the_estimated_size(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model()
    optimization = adamw()
    optimizer = optimization.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [kept for state in optimizer.state.values() for kept in state.values() if kept.ndim]
    assert moments(optimization, model) == 2
    assert training_memory(model, 0, 4, 2, ema=False) == sum(t.nbytes for t in tensors)
    assert training_memory(model, 0, 2, 2, ema=True) - training_memory(model, 0, 4, 2, ema=False) == (
        (4 + 2) * sum(p.numel() for p in model.parameters())
    )


def test_an_optimizer_of_other_options() -> None:
    assert (
        moments(
            Optimization(lambda groups: torch.optim.SGD(groups, 0.1), parameter_groups, 1.0, 0.0, 0.0), nn.Linear(2, 2)
        )
        == 0
    )
    with pytest.raises(UserError, match=r"the optimizer rejects its settings .*Invalid beta"):
        moments(adamw(betas=(2.0, 0.9)), nn.Linear(2, 2))
    (problem,) = one("optimizer.optimizer.betas=[0.9,2.0]").problems
    assert problem.startswith(
        "optimizer.optimizer.betas=[0.9,2.0]: optimizer.optimizer.betas must be two numbers from 0"
    )
