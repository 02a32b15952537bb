"""The two-stream model: equal to the masked form, and without access to later patches.

The reference (tests/support/oracle.py) is the plain masked model with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.errors import UserError
from semaim.models import layers
from semaim.models.aim import AIM
from semaim.models.positions import sincos_2d
from semaim.permutations import (
    Attention,
    AttentionCenter,
    AttentionGuided,
    AttentionReversed,
    Center2Out,
    Out2Center,
    Permutation,
    RandomBlobs,
    RandomSquares,
    Raster,
    Stochastic,
    StochasticCenter,
    Zigzag,
)
from semaim.training.optimizers import parameter_groups
from support.oracle import masked_predict

ORDERS = (
    Raster,
    Zigzag,
    Stochastic,
    Center2Out,
    Out2Center,
    StochasticCenter,
    Attention,
    AttentionReversed,
    AttentionGuided,
    AttentionCenter,
    partial(RandomSquares, 2),
    partial(RandomBlobs, 5),
)
OBLONG = {"image_size": (12, 20)}  # 3 x 5 patches


def draw(order: Callable[[], Permutation], grid: tuple[int, int], batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    map_BL = torch.rand(batch, grid[0] * grid[1], generator=generator)
    return order()(grid, batch, map_BL, generator)


def gradients(model: AIM, predictions_BLP: Tensor, weight_BLP: Tensor) -> dict[str, Tensor]:
    """Parameter gradients of the weighted sum of the predictions."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((predictions_BLP * weight_BLP).sum(), parameters), strict=True))


def without_key_bias(name: str, gradient: Tensor) -> Tensor:
    """Key biases shift all scores of a query equally: their gradient is zero except for rounding, so it is excluded."""
    if name.endswith("attn.k.bias"):
        return gradient[:0]
    if name.endswith("attn.qkv.bias"):
        query, _, value = gradient.chunk(3)
        return torch.cat([query, value])
    return gradient


def assert_same_gradients(model: AIM, ours_BLP: Tensor, theirs_BLP: Tensor) -> None:
    weight_BLP = torch.randn(ours_BLP.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = gradients(model, ours_BLP, weight_BLP), gradients(model, theirs_BLP, weight_BLP)
    for name, gradient in theirs.items():
        expected, got = without_key_bias(name, gradient), without_key_bias(name, ours[name])
        assert (got - expected).norm() <= 1e-4 * expected.norm(), name
        assert expected.numel() == 0 or expected.norm() > 0, name  # every parameter is used


@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
@pytest.mark.parametrize("order_class", [Raster, Stochastic, AttentionCenter])
@pytest.mark.parametrize("sizes", [{}, OBLONG, {"query_depth": 4}, {**OBLONG, "query_depth": 1, "head": "linear"}])
def test_sorted_causal_form_is_the_masked_form(tiny_model, images, sizes, order_class, attention):
    model = tiny_model(**sizes)
    images_BCHW = images(2, *model.image_size)
    order_BL = draw(order_class, model.grid, 2)
    ours_BLP = model.predict(images_BCHW, order_BL)
    theirs_BLP = masked_predict(model, images_BCHW, order_BL, attention)
    assert ours_BLP.shape == (2, model.grid[0] * model.grid[1], 48)
    assert (ours_BLP - theirs_BLP).abs().max() <= 1e-5 * theirs_BLP.abs().max()

    assert_same_gradients(model, ours_BLP, theirs_BLP)


@pytest.mark.parametrize("sizes", [{}, {**OBLONG, "query_depth": 4}, {"skip_connections": True}])
@pytest.mark.parametrize("segments", [1, 2, 5, 11, "all"])
def test_segments_are_the_masked_form(tiny_model, images, sizes, segments):
    grid = (3, 5) if "image_size" in sizes else (8, 8)
    segments = grid[0] * grid[1] if segments == "all" else segments
    model = tiny_model(**sizes, segments=segments)
    images_BCHW, order_BL = images(2, *model.image_size), draw(Stochastic, grid, 2)
    ours_BLP = model.predict(images_BCHW, order_BL)
    theirs_BLP = masked_predict(model, images_BCHW, order_BL, segments=segments)
    assert (ours_BLP - theirs_BLP).abs().max() <= 1e-5 * theirs_BLP.abs().max()

    if segments == 1:
        return  # the class token sees itself alone: the gradients of its attention are zero, but for rounding
    assert_same_gradients(model, ours_BLP, theirs_BLP)


def test_a_segment_per_patch_is_the_plain_model(tiny_model, images):
    """To the last bit, and with the same kernel: no mask is passed to attention."""
    plain, segmented = tiny_model(), tiny_model(segments=64)
    order_BL, weight_BLP = draw(Stochastic, (8, 8), 2), torch.randn(2, 64, 48)
    with mock.patch.object(layers.F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attention:
        ours_BLP, theirs_BLP = (model.predict(images(), order_BL) for model in (segmented, plain))
    assert torch.equal(ours_BLP, theirs_BLP)
    assert [call.kwargs for call in attention.call_args_list] == 12 * [{"is_causal": True}]  # 4 + 2 blocks, twice
    ours, theirs = gradients(segmented, ours_BLP, weight_BLP), gradients(plain, theirs_BLP, weight_BLP)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_skip_connections_begin_as_the_plain_model(images):
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "query_depth": 2}
    predictions = []
    for skip_connections in (False, True):
        torch.manual_seed(0)
        model = AIM(48, **sizes, skip_connections=skip_connections)
        predictions.append(model.predict(images(), draw(Stochastic, (8, 8), 2)))
    assert torch.equal(*predictions)
    assert [weights.tolist() for weights in model.skip_weights] == [[0, 1, 0, 0], [0, 0, 0, 1]]
    # Weight decay would draw them to zero.
    assert [group["weight_decay"] for group in parameter_groups(model, 0.05)] == [0.05, 0.0]
    assert any(p is model.skip_weights[0] for p in parameter_groups(model, 0.05)[1]["params"])


@pytest.mark.parametrize("segments", [None, 2, 5, 11, 16])
@pytest.mark.parametrize("order_class", ORDERS, ids=lambda c: getattr(c, "func", c).__name__)
def test_no_prediction_depends_on_its_own_or_later_segments(tiny_model, images, order_class, segments):
    """The gradient of a prediction is exactly zero at the pixels of its own and later segments, and at other images."""
    model = tiny_model(image_size=16, depth=2, segments=segments)  # 4 x 4 patches
    sizes = [len(part) for part in np.array_split(np.arange(16), segments or 16)]
    segment_L = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images_BCHW = images(2, 16, 16).requires_grad_()
    order_BL = draw(order_class, (4, 4), 2)
    segment_BL = segment_L[order_BL.argsort(1)]
    predictions_BLP = model.predict(images_BCHW, order_BL)
    weight_P = torch.randn(48, generator=torch.Generator().manual_seed(2))  # a plain sum might cancel
    for i in range(16):
        prediction = (predictions_BLP[0, i] * weight_P).sum()
        (gradient_BCHW,) = torch.autograd.grad(prediction, images_BCHW, retain_graph=True)
        assert torch.equal(gradient_BCHW[1], torch.zeros(3, 16, 16))
        patches_L = gradient_BCHW[0].unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(16, 48)
        earlier_L = segment_BL[0] < segment_BL[0, i]
        assert torch.equal(patches_L[~earlier_L], torch.zeros(16 - int(earlier_L.sum()), 48))
        assert (patches_L[earlier_L] != 0).any(1).all()  # every earlier patch has a gradient


def test_first_patch_is_predicted_from_the_class_token_alone(tiny_model, images):
    model = tiny_model()
    order_BL = draw(Stochastic, model.grid, 1)
    first = int(order_BL[0, 0])
    one, other = (model.predict(images(1, seed=seed), order_BL)[0, first] for seed in (0, 1))
    assert torch.equal(one, other)
    (gradient,) = torch.autograd.grad(one.square().sum(), model.cls_token)
    assert gradient.norm() > 0


def test_activation_checkpointing_changes_nothing(tiny_model, images):
    results = []
    for activation_checkpointing in (False, True):
        model = tiny_model(drop_path=0.5).train()
        model.set_grad_checkpointing(activation_checkpointing)
        order_BL = draw(Stochastic, model.grid, 2)
        torch.manual_seed(0)  # the recomputation must drop the same paths
        loss = model.predict(images(), order_BL).square().mean()
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    (loss, expected), (checkpointed_loss, got) = results
    assert torch.equal(loss, checkpointed_loss)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@torch.no_grad()
def test_drop_path(tiny_model, images):
    model, order_BL = tiny_model(drop_path=0.6), draw(Raster, (8, 8), 2)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert [block.drop_path.rate for block in model.query_blocks] == pytest.approx([0.2, 0.6])
    expected = tiny_model().eval().predict(images(), order_BL)
    torch.manual_seed(0)
    model.train()
    assert not torch.equal(model.predict(images(), order_BL), model.predict(images(), order_BL))
    tokens = model.encode(images())
    assert torch.equal(model.encode_with_attention(images())[0], tokens)  # the encoder alone never drops
    model.eval()
    assert torch.equal(model.encode(images()), tokens)
    assert torch.equal(model.predict(images(), order_BL), expected)


@torch.no_grad()
def test_attention_of_the_last_block(tiny_model, images):
    model = tiny_model(**OBLONG)
    images_BCHW = images(2, 12, 20)
    tokens_BND, attention_BL = model.encode_with_attention(images_BCHW)
    assert torch.equal(tokens_BND, model.encode(images_BCHW))
    inputs: list[Tensor] = []
    hook = model.blocks[-1].attn.qkv.register_forward_hook(lambda _module, _args, output: inputs.append(output))
    model.encode(images_BCHW)
    hook.remove()
    q, k, _ = inputs[0].view(2, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)  # (qkv, B, H, N, K)
    weights_BHNN = torch.softmax(q @ k.transpose(-1, -2) / 4.0, dim=-1)
    assert (attention_BL - weights_BHNN.mean(1)[:, 0, 1:]).abs().max() <= 1e-6
    assert (attention_BL.sum(1) < 1).all()  # the rest is the attention of cls to itself


def test_positions_by_hand():
    """Width 8 has frequencies 1 and 1/100: sin, sin, cos, cos of the column, then the same of the row."""
    positions_LD = sincos_2d(8, (2, 3))
    assert positions_LD.shape == (6, 8)
    for i, position_D in enumerate(positions_LD.tolist()):
        row, column = divmod(i, 3)
        expected = [f(x * w) for x in (column, row) for f in (math.sin, math.cos) for w in (1, 0.01)]
        assert position_D == pytest.approx(expected, abs=1e-7)


def test_initialisation():
    torch.manual_seed(0)
    model = AIM(768, 32, 16, embed_dim=256, depth=2, num_heads=4, query_depth=1)
    for name, parameter in model.named_parameters():
        if name == "cls_token":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2)
        elif parameter.ndim == 1:
            constant = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == constant).all(), name
        else:  # Xavier uniform; the patch embedding is a linear layer on a patch
            matrix = parameter.flatten(1)
            bound = (6 / sum(matrix.shape)) ** 0.5
            assert 0.99 * bound < matrix.abs().max() <= bound, name
            assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 30}, r"30x30 .*patch size 4: change data\.image_size or data\.patch_size"),
        ({"image_size": (32, 31)}, r"32x31 .*patch size 4"),
        ({"image_size": 4}, "single patch"),
        ({"patch_size": 0}, "patch size 0"),
        ({"query_depth": 3}, r"model\.query_depth=3 must divide model\.depth=4: choose one of \[1, 2, 4\]"),
        ({"query_depth": 0}, r"model\.query_depth=0"),
        ({"num_heads": 3}, r"model\.num_heads=3 must divide model\.embed_dim=32"),
        ({"embed_dim": 30}, r"model\.embed_dim=30 must be divisible by 4"),
        ({"head": "conv"}, r"model\.head=conv is unknown: choose mlp or linear"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tiny_model, sizes, message):
    with pytest.raises(UserError, match=message):
        tiny_model(**sizes)
