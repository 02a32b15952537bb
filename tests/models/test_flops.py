"""The stated memory and operations of models, compared with what torch saves and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from semaim.models.aim import AIM
from semaim.models.flops import cost, encoder_cost
from semaim.models.vit import vit_of
from semaim.training.memory import activations


def test_an_encoder_alone_costs_what_it_costs_in_the_model(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model()
    vit = vit_of(model, 10, "mean", 0.0)
    found, whole = encoder_cost(vit), cost(model, False)
    assert (found.encoder_parameters, found.encode) == (whole.encoder_parameters, whole.encode)
    assert found.parameters == whole.encoder_parameters + 32 * 10 + 10
    assert found.predict == whole.encode + 2 * 32 * 10
    assert found.training_step == 3 * found.predict - 2 * 64 * 48 * 32  # no gradient of the images


@pytest.mark.parametrize(
    ("name", "encode", "head"),
    [
        ("vit_base_patch16_224", 35_126_120_448, 2 * 768 * 1000),
        ("beit_base_patch16_224", 35_126_120_448, 2 * 768 * 1000),  # its tables of positions are added, not multiplied
        ("deit_base_distilled_patch16_224", 35_310_551_040, 2 * 2 * 768 * 1000),  # two heads
        # A query attends to the patches (q, k, v and proj), then an MLP, as the head.
        ("vit_base_patch16_siglip_224", 34_941_763_584, 2 * (2 + 2 * 196 + 8) * 768**2 + 4 * 196 * 768),
    ],
)
def test_encoders_of_timm(name: str, encode: int, head: int) -> None:
    with torch.device("meta"):
        vit = timm.create_model(name)
    found = encoder_cost(vit)
    assert (found.encode, found.predict - found.encode) == (encode, head)


def test_counting_leaves_the_model_and_random_numbers_as_they_are(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model(drop_path=0.5).train()
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [{}, {"head": "linear", "query_depth": 4, "patch_size": 8, "embed_dim": 96}])
@pytest.mark.parametrize("alone", [False, True])
def test_activations_are_what_autograd_saves(
    tiny_model: Callable[..., AIM],
    images: Callable[..., Tensor],
    sizes: dict[str, Any],
    alone: bool,
    dtype: torch.dtype,
) -> None:
    two_streams = tiny_model(**{"out_channels": 3 * sizes.get("patch_size", 4) ** 2, **sizes})
    model: Any = vit_of(two_streams, 10, "mean", 0.1) if alone else two_streams
    given = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def saved(batch: int) -> int:
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        orders_BL = torch.rand(batch, two_streams.grid[0] * two_streams.grid[1]).argsort(1)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            model.train()(images(batch), *([] if alone else [orders_BL])).square().mean()
        return sum(kept.untyped_storage().nbytes() for where, kept in found.items() if where not in given)

    assert activations(model, dtype.itemsize) == pytest.approx((saved(6) - saved(2)) / 4, rel=0.05)
    copies = (3 * saved(2) - saved(6)) / 2  # independent of the batch: weights in bf16
    assert copies == pytest.approx(2 * sum(p.numel() for p in model.parameters()) * (dtype != torch.float32), rel=0.1)


def test_activation_checkpointing_keeps_the_inputs_of_blocks(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model(depth=8, query_depth=4)
    state, block = 64 * 32 * 4, 64 * (32 * (8 + 6 * 4) + 2 * 128 * 4 + 4 * 2 + 16)
    assert activations(model, 4) - activations(model, 4, checkpointing=True) == 11 * block + 5 * state - 14 * state
