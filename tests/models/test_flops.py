"""The stated memory and operations of models, compared with what torch saves and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from semaim.models.aim import AIM
from semaim.models.flops import cost, encoder_cost
from semaim.models.mae import MAE
from semaim.models.predictor import Predictor
from semaim.models.simmim import SimMIM
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


SMALL = {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
MODELS: dict[str, Callable[[], Predictor]] = {
    "two streams": partial(AIM, 48, **SMALL, query_depth=2),
    "other sizes": partial(AIM, 192, **{**SMALL, "patch_size": 8, "embed_dim": 96}, query_depth=4, head="linear"),
    "segments": partial(AIM, 48, **SMALL, query_depth=2, segments=3),
    "skip connections": partial(AIM, 48, **SMALL, query_depth=4, skip_connections=True),
    "MAE": partial(MAE, 48, **{**SMALL, "embed_dim": 96}, decoder_dim=32, decoder_depth=3, decoder_num_heads=2),
    "SimMIM": partial(SimMIM, 48, **SMALL),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "alone"), [*((name, False) for name in MODELS), ("two streams", True)])
def test_activations_are_what_autograd_saves(
    images: Callable[..., Tensor], name: str, alone: bool, dtype: torch.dtype
) -> None:
    predictor = MODELS[name]()
    model: Any = vit_of(predictor, 10, "mean", 0.1) if alone else predictor
    given = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def saved(batch: int) -> int:
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        orders_BL = torch.rand(batch, predictor.grid[0] * predictor.grid[1]).argsort(1)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            output = model.train()(images(batch), *([] if alone else [orders_BL]))
            (output if alone else output.predictions_BLP).square().mean()
        return sum(kept.untyped_storage().nbytes() for where, kept in found.items() if where not in given)

    assert activations(model, dtype.itemsize) == pytest.approx((saved(6) - saved(2)) / 4, rel=0.05)
    copies = (3 * saved(2) - saved(6)) / 2  # independent of the batch: weights in bf16
    expected = 2 * sum(p.numel() for p in model.parameters()) * (dtype != torch.float32)
    if (
        name == "segments"
    ):  # attention adds masks as numbers: (L, N) = (64, 44) of the query blocks, (N, N) of the others
        expected += (2 * 64 * 44 + 4 * 44 * 44) * dtype.itemsize
    assert copies == pytest.approx(expected, rel=0.1)


def test_activation_checkpointing_keeps_the_inputs_of_blocks(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model(depth=8, query_depth=4)
    state, block = 64 * 32 * 4, 64 * (32 * (8 + 6 * 4) + 2 * 128 * 4 + 4 * 2 + 16)
    assert activations(model, 4) - activations(model, 4, checkpointing=True) == 11 * block + 5 * state - 14 * state


@pytest.fixture
def vit_b() -> Iterator[AIM]:
    """ViT-B 224/16 for pixels with all twelve query blocks, on the meta device: sizes without memory."""
    with torch.device("meta"):
        yield AIM(768, 224, 16, embed_dim=768, depth=12, num_heads=12, query_depth=12)


def test_vit_b_parameters_and_operations(vit_b: AIM) -> None:
    width, per_block = 768, 12 * 768**2 + 13 * 768  # qkv, proj and the MLP; their biases and two norms
    encoder = width + (16 * 16 * 3 + 1) * width + 12 * per_block + 2 * width
    assert encoder == 85_647_360  # timm's 85,798,656 include 197 * 768 positions, no parameters here
    head = (width + 1) * 4 * width + (4 * width + 1) * width
    found = cost(vit_b, encoder_passes=1)
    assert found.encoder_parameters == encoder
    assert found.parameters == encoder + 12 * per_block + head
    embed, mlp_head = 2 * 196 * 768 * width, 2 * 196 * 8 * width**2

    def blocks(tokens: int) -> int:  # of one stream: matrix products with weights, and attention
        return 12 * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)

    assert found.encode == embed + blocks(197) == 35_126_120_448
    assert found.predict == embed + 2 * blocks(196) + mlp_head
    assert found.training_step == 3 * found.predict - embed + found.encode == 214_274_801_664 + 35_126_120_448


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("sizes", [{}, {"image_size": (12, 20), "query_depth": 4, "head": "linear"}])
def test_cost_is_what_torch_counts(
    tiny_model: Callable[..., AIM], images: Callable[..., Tensor], sizes: dict[str, Any], passes: int
) -> None:
    model = tiny_model(**sizes)
    images_BCHW, order_BL = images(1, *model.image_size), torch.arange(model.grid[0] * model.grid[1])[None]
    expected = cost(model, passes)

    def training_step() -> None:
        with torch.no_grad():
            for _ in range(passes):
                model.encode(images_BCHW)
        model.predict(images_BCHW, order_BL).sum().backward()

    # Every torch version counts attention written as matrix products; its backward has four products, twice its
    # forward: the convention of `cost`. (For fused kernels some versions count none, others also a recomputation.)
    with sdpa_kernel(SDPBackend.MATH):
        assert flops(lambda: model.encode(images_BCHW)) == expected.encode
        assert flops(lambda: model.predict(images_BCHW, order_BL)) == expected.predict
        assert flops(training_step) == expected.training_step
