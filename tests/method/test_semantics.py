"""Semantic maps: similarities by hand, and an encoder pass without gradient, drop path or loss of precision."""

from __future__ import annotations

import math

import pytest
import torch

from semaim.errors import UserError
from semaim.models.token_cache import Encoder, TokenCache
from semaim.semantics import SemanticMap, semantic_map

KINDS = ("cls", "gap", "self")


def made(encoder: Encoder, images_BCHW: torch.Tensor, kind: str, full_precision: bool = False) -> torch.Tensor:
    """Map from a separate pass."""
    passes = TokenCache({"online": encoder}, images_BCHW)
    return SemanticMap(kind, full_precision=full_precision)(passes, "online")  # type: ignore[arg-type]


def by_softmax(cosines: list[float]) -> list[float]:
    exponentials = [math.exp(cosine) for cosine in cosines]
    return [value / sum(exponentials) for value in exponentials]


def test_cls_map_by_hand():
    tokens_BND = torch.tensor([[[2.0, 0.0], [3.0, 0.0], [0.0, 5.0], [-3.0, 4.0]]])  # cls and three patches
    map_BL = semantic_map(tokens_BND, "cls")
    assert map_BL.shape == (1, 3)
    assert map_BL[0].tolist() == pytest.approx(by_softmax([1.0, 0.0, -0.6]), rel=1e-6)
    assert torch.equal(map_BL, semantic_map(tokens_BND))  # the default


def test_gap_map_by_hand():
    # The mean patch is (3, 3) for any cls; cosines with (4, 0), (5, 5), (0, 4) are 1/sqrt 2, 1, 1/sqrt 2.
    tokens_BND = torch.tensor([[[-9.0, 1.0], [4.0, 0.0], [5.0, 5.0], [0.0, 4.0]]])
    expected = by_softmax([0.5**0.5, 1.0, 0.5**0.5])
    assert semantic_map(tokens_BND, "gap")[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_map_ignores_the_length_of_tokens_and_other_images():
    tokens_BND = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    scaled_BND = tokens_BND * torch.tensor([1.0, 7.0, 1.0, 0.1, 1.0, 3.0])[None, :, None]
    assert torch.allclose(semantic_map(scaled_BND, "cls"), semantic_map(tokens_BND, "cls"), rtol=1e-6)
    for kind in ("cls", "gap"):
        assert torch.equal(semantic_map(tokens_BND[:1], kind), semantic_map(tokens_BND, kind)[:1])


@pytest.mark.parametrize("kind", ["cls", "gap"])
def test_maps_are_float32_distributions(kind):
    tokens_BND = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    map_BL = semantic_map(tokens_BND, kind)
    assert map_BL.dtype == torch.float32
    assert (map_BL > 0).all()
    assert (map_BL.sum(1) - 1).abs().max() <= 1e-6
    assert torch.equal(map_BL, semantic_map(tokens_BND.float(), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_does_not_change_the_model(tiny_model, images, kind):
    images_BCHW = images().requires_grad_()
    for training in (True, False):
        model = tiny_model(drop_path=0.9).train(training)
        map_BL = made(model, images_BCHW, kind)
        assert not map_BL.requires_grad
        assert [module.training for module in model.modules()] == [training] * len(list(model.modules()))
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        # Drop path has no effect: in training mode, the map is repeatable and equals that of a model without drop path.
        assert torch.equal(made(model, images_BCHW, kind), map_BL)
        assert torch.equal(made(tiny_model(), images_BCHW, kind), map_BL)
    assert torch.is_grad_enabled()


@torch.no_grad()
def test_each_kind_is_what_the_encoder_gives(tiny_model, images):
    model, images_BCHW = tiny_model(image_size=(12, 20)), images(3, 12, 20)
    tokens_BND, attention_BL = model.encode_with_attention(images_BCHW)
    assert torch.equal(made(model, images_BCHW, "self"), attention_BL)
    assert torch.equal(made(model, images_BCHW, "cls"), semantic_map(tokens_BND, "cls"))
    assert torch.equal(made(model, images_BCHW, "gap"), semantic_map(tokens_BND, "gap"))
    assert attention_BL.shape == (3, 15)


@pytest.mark.parametrize("kind", KINDS)
def test_precision_under_autocast(tiny_model, images, kind):
    model, images_BCHW = tiny_model(), images()
    exact_BL = made(model, images_BCHW, kind)
    with torch.autocast("cpu", torch.bfloat16):
        full_BL = made(model, images_BCHW, kind, full_precision=True)
        low_BL = made(model, images_BCHW, kind)
        assert torch.is_autocast_enabled("cpu")  # the caller's precision is restored
    assert torch.equal(full_BL, exact_BL)
    assert low_BL.dtype == torch.float32
    assert not torch.equal(low_BL, exact_BL)
    assert ((low_BL - exact_BL).abs() / exact_BL).max() <= 0.05
    assert torch.equal(made(model, images_BCHW, kind), exact_BL)  # without autocast float32 is the default


def test_low_precision_is_the_callers():
    seen = []

    class Watched:
        def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
            return torch.ones(1, 5, 8)

        def encode_with_attention(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError("only the kind self needs attention")

    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            made(Watched(), torch.zeros(1, 3, 8, 8), "cls")
            made(Watched(), torch.zeros(1, 3, 8, 8), "cls", full_precision=True)
    assert seen[0] == (True, torch.bfloat16)
    assert seen[2] == (True, torch.float16)
    assert seen[1][0] is seen[3][0] is False


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match=r"semantic map 'self' is unknown: choose cls or gap"):
        semantic_map(torch.zeros(1, 4, 8), "self")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"semantic_map\.kind=mean is unknown: choose cls, gap or self"):
        SemanticMap("mean")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"semantic_map\.source=dino is unknown: choose auto, online, ema or teacher"):
        SemanticMap("cls", source="dino")  # type: ignore[arg-type]


def test_the_map_uses_the_network_of_the_target_by_default():
    for of_target, expected in ((None, "online"), ("online", "online"), ("ema", "ema"), ("teacher", "teacher")):
        assert SemanticMap().network_beside(of_target) == expected
        for source in ("online", "ema", "teacher"):
            assert SemanticMap(source=source).network_beside(of_target) == source
