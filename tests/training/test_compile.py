"""Compiled blocks: few graphs, whatever the rates of stochastic depth, which drops as many branches as asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from semaim.models.aim import AIM
from semaim.models.layers import DropPath
from semaim.models.vit import build_vit
from semaim.training.ddp import compile_blocks


@pytest.fixture(autouse=True)
def _graphs_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Graphs are made and run as they are, without kernels, which take a minute."""

    def compile_(self: nn.Module) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    counters.clear()


def step(network: nn.Module, *inputs: Tensor) -> None:
    network.train()
    output = network(*inputs)
    (output if isinstance(output, Tensor) else output.predictions_BLP).float().mean().backward()


def test_twelve_blocks_with_twelve_rates_share_their_graphs() -> None:
    model = AIM(48, 32, 8, 32, 12, 2, 12, drop_path=0.3)
    compile_blocks(model)
    images, order = torch.randn(4, 3, 32, 32), torch.rand(4, 16).argsort(1)
    with torch.no_grad():
        model.encode(images)
    step(model, images, order)
    # Content: semantic pass, and the step without and with dropped branches. Query: the first, whose input needs no
    # gradient and whose rate is zero, and the others.
    assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]


def test_the_blocks_of_fine_tuning_share_theirs() -> None:
    sizes = {"image_size": (32, 32), "patch_size": 8, "embed_dim": 32, "depth": 12, "num_heads": 2, "mlp_ratio": 4.0}
    vit = build_vit(sizes, 10, "mean", drop_path=0.3)
    names = set(vit.state_dict())
    compile_blocks(vit)
    step(vit, torch.randn(4, 3, 32, 32))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert set(vit.state_dict()) == names


def test_compiled_kernels_are_kept_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    compile_blocks(tiny_model())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compile_blocks(tiny_model())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "semaim" / "torchinductor")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compile_blocks(tiny_model())
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR", "").count("semaim") == 0  # torch's own, in the temporary folder


@pytest.mark.parametrize("compiled", [False, True])
def test_stochastic_depth_drops_as_many_images_as_asked_for_and_scales_the_others(compiled: bool) -> None:
    drop = DropPath(0.25)
    if compiled:
        drop.compile()
    torch.manual_seed(0)
    found = drop(torch.ones(20_000, 2, 3), True)
    assert found.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert (found == found[:, :1, :1]).all()
    assert (found[:, 0, 0] == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)  # 3 standard deviations
    assert torch.equal(drop(torch.ones(5, 2, 3), False), torch.ones(5, 2, 3))


def test_its_numbers_are_those_of_timm() -> None:
    branch = torch.randn(64, 5, 3)
    torch.manual_seed(1)
    expected = timm.layers.drop_path(branch, 0.3, True)
    torch.manual_seed(1)
    assert torch.equal(DropPath(0.3)(branch, True), expected)
