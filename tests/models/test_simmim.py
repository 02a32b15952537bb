"""The masked image model equals transformers' ViTForMaskedImageModeling, and does not see what is hidden."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForMaskedImageModeling

from semaim.errors import UserError
from semaim.models.simmim import SimMIM
from semaim.targets import Pixels, patchify

SIZES = {"out_channels": 48, "image_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4}


def transformers_model() -> ViTForMaskedImageModeling:
    """A small model of transformers, whose weights are all other than at initialisation."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=4,
        encoder_stride=4, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = ViTForMaskedImageModeling(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def theirs_by_our_names(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients of transformers under our names.

    Their head's channels are (colour, row, column) of a pixel in the patch, ours (row, column, colour).
    """
    found = {
        "cls_token": values["vit.embeddings.cls_token"],
        "mask_token": values["vit.embeddings.mask_token"],
    }
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = values[f"vit.embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = values[f"vit.layernorm.{kind}"]
        head = values[f"decoder.0.{kind}"].unflatten(0, (3, 4, 4)).movedim(0, 2).flatten(0, 2)
        found[f"prediction_head.{kind}"] = head.flatten(1) if kind == "weight" else head
        for i in range(3):
            layer, block = f"vit.layers.{i}", f"blocks.{i}"
            parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
                     "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}  # fmt: skip
            found |= {f"{block}.{our}.{kind}": values[f"{layer}.{their}.{kind}"] for our, their in parts.items()}
            qkv = [values[f"{layer}.attention.{each}_proj.{kind}"] for each in "qkv"]
            found[f"{block}.attn.qkv.{kind}"] = torch.cat(qkv)
    return found


@pytest.mark.parametrize(("hidden", "mask_unit"), [(0.6, None), (0.6, 8), (0.3, 16)])
def test_it_equals_the_model_of_transformers(images, hidden: float, mask_unit: int | None) -> None:
    theirs, ours = transformers_model(), SimMIM(**SIZES, hidden=hidden, mask_unit=mask_unit)
    positions = theirs.vit.embeddings.position_embeddings.detach().clone()
    positions[:, 0] = 0.0
    with torch.no_grad():
        theirs.vit.embeddings.position_embeddings.copy_(positions)
    ours.load_state_dict(theirs_by_our_names(theirs.state_dict()) | {"pos_embed": positions})
    images_BCHW = images(3)
    order_BL = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)).argsort(1)

    prediction = ours(images_BCHW, order_BL)
    target = Pixels(4, blur_kernel_size=0, norm_pix=False, loss="l1")
    loss = prediction.mean(target.loss(prediction.predictions_BLP, target(images_BCHW))).mean()
    expected = theirs(images_BCHW, bool_masked_pos=prediction.counted_BL)

    theirs_BLP = patchify(expected.reconstruction, 4)
    assert (prediction.predictions_BLP - theirs_BLP).abs().max() <= 1e-5 * theirs_BLP.abs().max()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    expected.loss.backward()
    loss.backward()
    gradients = theirs_by_our_names({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        got, wanted = parameter.grad, gradients[name]
        if name.endswith("attn.qkv.bias"):  # that of the key shifts all scores of a query: its gradient is rounding
            got, wanted = (torch.cat([each.chunk(3)[0], each.chunk(3)[2]]) for each in (got, wanted))
        assert wanted.norm() > 0, name
        assert (got - wanted).norm() <= 1e-4 * wanted.norm(), name


def small(**options: float) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(**SIZES, **options).eval()


def random_orders(batch: int, patches: int = 64) -> Tensor:
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(2)).argsort(1)


def test_hidden_patches_are_not_seen(images) -> None:
    """Every prediction has a gradient at the pixels of all visible patches, and of exactly zero at all others."""
    model, images_BCHW = small(mask_unit=8), images(2).requires_grad_()
    predictions_BLP, counted_BL = model(images_BCHW, random_orders(2))
    for patch in (0, 17, 63):
        (gradient_BCHW,) = torch.autograd.grad(predictions_BLP[0, patch].sum(), images_BCHW, retain_graph=True)
        assert torch.equal(gradient_BCHW[1], torch.zeros(3, 32, 32))
        seen_L = gradient_BCHW[0].unfold(1, 4, 4).unfold(2, 4, 4).abs().amax((0, 3, 4)).flatten()
        assert torch.equal(seen_L > 0, ~counted_BL[0])


def test_the_last_patches_of_the_order_are_hidden(images) -> None:
    order_BL = random_orders(2)
    counted_BL = small()(images(), order_BL).counted_BL
    assert torch.equal(counted_BL.gather(1, order_BL), (torch.arange(64) >= 64 - 39).expand(2, -1))  # 38.4, rounded up


def test_units_of_the_paper() -> None:
    """30 of 49 units of 32 pixels are hidden, 120 of 196 patches; units follow each other as their first patches do."""
    sizes = {**SIZES, "image_size": 224, "patch_size": 16}
    model = SimMIM(**sizes, mask_unit=32)
    order_BL = random_orders(20, 196)
    hidden_BL = model.hidden_patches(order_BL)
    assert hidden_BL.sum(1).tolist() == 20 * [120]
    units_BU4 = hidden_BL.view(20, 7, 2, 7, 2).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    assert torch.equal(units_BU4.any(2), units_BU4.all(2))
    first_BU = order_BL.argsort(1).view(20, 7, 2, 7, 2).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2).amin(2)
    for first_U, hidden_U in zip(first_BU, units_BU4.all(2), strict=True):
        assert first_U[hidden_U].min() > first_U[~hidden_U].max()
    assert 0 < hidden_BL.float().mean(0).min() <= hidden_BL.float().mean(0).max() < 1  # none always, none never


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0.0}, "model.hidden=0 of 64 mask units of 4 pixels leaves no patch to predict"),
        ({"hidden": 0.99}, "model.hidden=0.99 of 64 mask units of 4 pixels leaves no patch to see: .* up to 0.98"),
        (
            {"mask_unit": 6},
            "model.mask_unit=6 must be a multiple of the patch size 4 that divides the image size 32x32",
        ),
        ({"mask_unit": 12}, "model.mask_unit=12 must be a multiple of the patch size 4"),
        ({"mask_unit": 32}, "model.hidden=0.6 of 1 mask units"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimMIM(**SIZES, **options)
