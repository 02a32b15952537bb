"""The encoder alone: timm's vision transformer computes the content stream of the two-stream model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semaim.errors import UserError
from semaim.models.vit import build_vit, encode, pooled, vit_of

SIZES = [
    pytest.param({}, (32, 32), id="square"),
    pytest.param({"image_size": (16, 24)}, (16, 24), id="not square"),
    pytest.param({"image_size": (24, 16), "patch_size": 8, "mlp_ratio": 2.0}, (24, 16), id="narrow mlp"),
    pytest.param({"num_heads": 8, "depth": 2, "head": "linear", "out_channels": 12}, (32, 32), id="eight heads"),
]


def before_the_norm(model, images_BCHW):
    """Tokens after the last block of the content stream."""
    tokens_BND = model._with_cls(model._patches(images_BCHW))
    for block in model.blocks:
        tokens_BND = block(tokens_BND, False, False)
    return tokens_BND


def normed(x, norm):
    """Layer normalisation by hand."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def differ(vit, seed=7):
    """Give the norm before the head and the head weights that differ from the initial ones."""
    with torch.no_grad():
        for parameter in [*vit.fc_norm.parameters(), *vit.head.parameters()]:
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return vit.eval()


@pytest.mark.parametrize(("sizes", "shape"), SIZES)
@torch.no_grad()
def test_tokens_are_those_of_the_content_stream(tiny_model, images, sizes, shape):
    model, pictures = tiny_model(**sizes), images(3, *shape)
    expected_BND = model.encode(pictures)
    found_BND = vit_of(model).eval().forward_features(pictures)
    assert found_BND.shape == expected_BND.shape
    assert (found_BND - expected_BND).abs().max() <= 1e-6 * expected_BND.abs().max()
    other_BND = vit_of(tiny_model(seed=1, **sizes)).eval().forward_features(pictures)
    assert (other_BND - expected_BND).abs().max() > 0.1, "the weights matter"


def test_every_weight_of_the_content_stream_is_taken_and_none_of_the_rest(tiny_model):
    model = tiny_model()
    vit, theirs = vit_of(model), model.state_dict()
    of_the_queries = {name for name in theirs if name.startswith(("query_blocks.", "prediction_head."))}
    assert len(of_the_queries) == 2 * 16 + 4
    assert vit.state_dict().keys() == theirs.keys() - of_the_queries
    for name, value in vit.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_the_encoder_shares_no_memory_with_the_model(tiny_model):
    model = tiny_model()
    before = model.cls_token.detach().clone()
    with torch.no_grad():
        for parameter in vit_of(model).parameters():
            parameter.zero_()
    assert torch.equal(model.cls_token, before)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_all_norms_have_the_epsilon_of_the_model(tiny_model, pool):
    norms = [m for m in vit_of(tiny_model(), 3, pool).modules() if isinstance(m, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-6] * (2 * 4 + 1)


@torch.no_grad()
def test_small_tokens_use_the_same_epsilon(tiny_model, images):
    """The norm of nearly constant tokens, where an epsilon of 1e-5 would give a very different result."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter *= 1e-2
    expected_BND = model.encode(images())
    assert torch.allclose(vit_of(model).eval().forward_features(images()), expected_BND, rtol=1e-5, atol=1e-8)
    model.norm.eps = 1e-5
    assert not torch.allclose(model.encode(images()), expected_BND, rtol=0.1, atol=1e-8)


@pytest.mark.parametrize("shape", [(32, 32), (16, 24)])
@torch.no_grad()
def test_a_classifier_of_the_mean_norms_it_anew(tiny_model, images, shape):
    model = tiny_model(image_size=shape)
    vit = vit_of(model, 7, "mean")
    assert torch.equal(vit.fc_norm.weight, torch.ones(32))
    assert torch.equal(vit.fc_norm.bias, torch.zeros(32))
    assert not list(vit.norm.parameters()), "the pretrained norm is not used"
    differ(vit)
    pictures = images(3, *shape)
    mean_BD = before_the_norm(model, pictures)[:, 1:].mean(1)
    expected_BC = normed(mean_BD, vit.fc_norm) @ vit.head.weight.T + vit.head.bias
    found_BC = vit(pictures)
    assert found_BC.shape == (3, 7)
    assert torch.allclose(found_BC, expected_BC, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_classifier_of_the_class_token_reads_it_normed(tiny_model, images):
    model = tiny_model()
    vit = differ(vit_of(model, 7, "cls"))
    assert not list(vit.fc_norm.parameters())
    cls_BD = normed(before_the_norm(model, images(3))[:, 0], model.norm)
    assert torch.allclose(vit(images(3)), cls_BD @ vit.head.weight.T + vit.head.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_number_of_outputs(tiny_model, images, pool):
    for classes in (1, 5):
        vit = vit_of(tiny_model(), classes, pool)
        assert vit.head.weight.shape == (classes, 32)
        assert vit(images()).shape == (2, classes)
    assert not list(vit_of(tiny_model(), 0, pool).head.parameters())
    assert vit_of(tiny_model(), 0, pool)(images()).shape == (2, 32)


def test_another_pooling_is_refused(tiny_model):
    with pytest.raises(UserError, match=r"task\.pool=max is unknown: choose cls or mean"):
        vit_of(tiny_model(), 5, "max")


# Stochastic depth


def drop_rates(vit):
    return [
        [getattr(part, "drop_prob", None) or 0.0 for part in (block.drop_path1, block.drop_path2)]
        for block in vit.blocks
    ]


@pytest.mark.parametrize(
    ("depth", "rate", "expected"),
    [(4, 0.3, [0.0, 0.1, 0.2, 0.3]), (3, 0.1, [0.0, 0.05, 0.1]), (4, 0.0, [0.0] * 4)],
)
def test_drop_path_grows_linearly_to_its_rate(tiny_model, depth, rate, expected):
    vit = vit_of(tiny_model(depth=depth, query_depth=1), 5, "mean", rate)
    assert drop_rates(vit) == [[pytest.approx(each, rel=1e-5)] * 2 for each in expected]


@torch.no_grad()
def test_drop_path_is_active_only_in_training(tiny_model, images):
    vit, plain = vit_of(tiny_model(), 5, "cls", 0.9), vit_of(tiny_model(), 5, "cls")
    plain.load_state_dict(vit.state_dict())
    expected = plain.eval()(images())
    assert torch.equal(vit.eval()(images()), expected)
    torch.manual_seed(0)
    assert not torch.allclose(vit.train()(images()), expected, atol=1e-3)


# Content of a checkpoint


@pytest.mark.parametrize("pool", ["cls", "mean"])
@torch.no_grad()
def test_the_record_is_enough_to_build_it_again(tiny_model, images, pool):
    vit = differ(vit_of(tiny_model(image_size=(16, 24), mlp_ratio=2.0), 5, pool, 0.1))
    record = vit.architecture["classifier"]
    assert record["num_classes"] == 5
    assert record["pool"] == pool
    assert record["sizes"] == {
        "image_size": (16, 24),
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    again = build_vit(**record, drop_path=0.0)
    again.load_state_dict(vit.state_dict())
    assert torch.equal(again.eval()(images(2, 16, 24)), vit(images(2, 16, 24)))


@torch.no_grad()
def test_a_model_of_timm_is_built_by_its_name():
    vit = build_vit({"timm": "test_vit"}, 5, "mean", 0.0).eval()
    assert type(vit).__name__ == "VisionTransformer"
    assert vit.architecture == {"classifier": {"sizes": {"timm": "test_vit"}, "num_classes": 5, "pool": "mean"}}
    assert vit(torch.zeros(1, 3, *vit.patch_embed.img_size)).shape == (1, 5)


# Features


def test_pooled_by_hand():
    tokens_BND = torch.arange(2 * 4 * 3).view(2, 4, 3).to(torch.bfloat16)
    found = pooled(tokens_BND)
    assert set(found) == {"cls", "mean"}
    assert torch.equal(found["cls"], torch.tensor([[0.0, 1.0, 2.0], [12.0, 13.0, 14.0]]))
    assert torch.equal(found["mean"], torch.tensor([[6.0, 7.0, 8.0], [18.0, 19.0, 20.0]]))
    assert {value.dtype for value in found.values()} == {torch.float32}
    registers = pooled(tokens_BND, prefix_tokens=2)
    assert torch.equal(registers["cls"], found["cls"])
    assert torch.equal(registers["mean"], torch.tensor([[7.5, 8.5, 9.5], [19.5, 20.5, 21.5]]))
    patches_alone = pooled(tokens_BND, prefix_tokens=0, class_token=False)
    assert set(patches_alone) == {"mean"}
    assert torch.equal(patches_alone["mean"], torch.tensor([[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]))


@torch.no_grad()
def test_features_of_the_encoder(tiny_model, images):
    model = tiny_model()
    tokens_BND = model.encode(images(3))
    found = encode(vit_of(model).eval(), images(3))
    assert torch.allclose(found["cls"], tokens_BND[:, 0], rtol=1e-5, atol=1e-6)
    assert torch.allclose(found["mean"], tokens_BND[:, 1:].mean(1), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_features_of_a_classifier_are_what_its_head_reads(tiny_model, images):
    for pool in ("cls", "mean"):
        vit = differ(vit_of(tiny_model(), 7, pool))
        logits_BC = F.linear(encode(vit, images(3))[pool], vit.head.weight, vit.head.bias)
        assert torch.allclose(logits_BC, vit(images(3)), rtol=1e-5, atol=1e-5)
