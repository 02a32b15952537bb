"""The masked autoencoder equals transformers' ViTMAEForPreTraining, and sees only what is visible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import semaim
from semaim.errors import UserError
from semaim.models.mae import MAE
from semaim.targets import Pixels

SIZES = {"out_channels": 48, "image_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4}
DECODER = {"decoder_dim": 32, "decoder_depth": 2, "decoder_num_heads": 2}


def transformers_mae(norm_pix: bool = True, share: float = 0.25) -> ViTMAEForPreTraining:
    """A small model of transformers, whose weights are all other than at initialisation."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=4,
        decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=128, mask_ratio=1 - share, norm_pix_loss=norm_pix, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "position" not in name:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def as_ours(name: str, weights: dict[str, Tensor]) -> Tensor:
    """A weight or gradient of transformers under our name; the key bias, whose gradient is rounding alone, left out."""
    if name in ("cls_token", "mask_token"):
        return weights[f"{'vit.embeddings' if name == 'cls_token' else 'decoder'}.{name}"]
    where = {"patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm"}
    where |= {each: f"decoder.{each}" for each in ("decoder_embed", "decoder_norm", "decoder_pred")}
    module, _, kind = name.rpartition(".")
    if module in where:
        return weights[f"{where[module]}.{kind}"]
    stack, index, part = module.split(".", 2)
    layer = f"{'vit.layers' if stack == 'blocks' else 'decoder.decoder_layers'}.{index}"
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    if part != "attn.qkv":
        return weights[f"{layer}.{parts.get(part, part)}.{kind}"]
    return torch.cat([weights[f"{layer}.attention.{each}_proj.{kind}"] for each in "qkv"])


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_it_equals_the_model_of_transformers(images, tmp_path: Path, norm_pix: bool, share: float) -> None:
    theirs = transformers_mae(norm_pix, share)
    theirs.save_pretrained(tmp_path)
    ours = semaim.load_model(tmp_path, num_heads=4, decoder_num_heads=2)
    assert isinstance(ours, MAE)
    ours = MAE(**SIZES, **DECODER, visible=share)
    ours.load_state_dict(semaim.load_model(tmp_path, num_heads=4, decoder_num_heads=2).state_dict())
    images_BCHW, noise_BL = images(3), torch.rand(3, 64, generator=torch.Generator().manual_seed(1))

    expected = theirs(images_BCHW, noise=noise_BL)
    prediction = ours(images_BCHW, noise_BL.argsort(1))
    target = Pixels(4, blur_kernel_size=0, norm_pix=norm_pix)
    loss = prediction.mean(target.loss(prediction.predictions_BLP, target(images_BCHW))).mean()

    assert torch.equal(prediction.counted_BL, expected.mask.bool())
    assert prediction.counted_BL.sum(1).tolist() == 3 * [64 - int(64 * share)]
    difference = (prediction.predictions_BLP - expected.logits).abs().max()
    assert difference <= 1e-5 * expected.logits.abs().max()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)

    expected.loss.backward()
    loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        got, theirs_ = parameter.grad, as_ours(name, gradients)
        if name.endswith("attn.qkv.bias"):  # that of the key shifts all scores of a query: its gradient is rounding
            got, theirs_ = (torch.cat([each.chunk(3)[0], each.chunk(3)[2]]) for each in (got, theirs_))
        assert theirs_.norm() > 0, name
        assert (got - theirs_).norm() <= 1e-4 * theirs_.norm(), name


def small(**options: float) -> MAE:
    torch.manual_seed(0)
    return MAE(**SIZES, **DECODER, **options).eval()


def test_only_visible_patches_are_seen(images) -> None:
    """Every prediction has a gradient at the pixels of all visible patches, and of exactly zero at all others."""
    model, images_BCHW = small(visible=0.3), images(2).requires_grad_()
    order_BL = torch.rand(2, 64, generator=torch.Generator().manual_seed(2)).argsort(1)
    predictions_BLP, counted_BL = model(images_BCHW, order_BL)
    assert counted_BL.sum(1).tolist() == [45, 45]  # 64 - int(19.2)
    for patch in (0, 17, 63):
        (gradient_BCHW,) = torch.autograd.grad(predictions_BLP[0, patch].sum(), images_BCHW, retain_graph=True)
        assert torch.equal(gradient_BCHW[1], torch.zeros(3, 32, 32))
        seen_L = gradient_BCHW[0].unfold(1, 4, 4).unfold(2, 4, 4).abs().amax((0, 3, 4)).flatten()
        assert torch.equal(seen_L > 0, ~counted_BL[0])


def test_semantic_orders_decide_what_is_visible(images) -> None:
    model = small()
    order_BL = torch.arange(64).expand(2, -1)
    assert torch.equal(model(images(), order_BL).counted_BL[0], torch.arange(64) >= 16)


def test_predictions_do_not_depend_on_the_order_of_what_is_hidden(images) -> None:
    model = small()
    order_BL = torch.rand(2, 64, generator=torch.Generator().manual_seed(3)).argsort(1)
    other_BL = torch.cat([order_BL[:, :16].flip(1), order_BL[:, 16:].flip(1)], dim=1)
    one, other = model.predict(images(), order_BL), model.predict(images(), other_BL)
    assert (one - other).abs().max() <= 1e-5 * one.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"visible": 0.01},
            "model.visible=0.01 of 64 patches leaves no patch to see: choose a share from 0.016 to 0.98",
        ),
        ({"visible": 1.0}, "model.visible=1 of 64 patches leaves no patch to predict"),
        ({"decoder_num_heads": 3}, "model.decoder_num_heads=3 must divide model.decoder_dim=32"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MAE(**SIZES, **{**DECODER, **options})
