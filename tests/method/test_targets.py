"""Targets and losses against hand-computed results: patches, blur, normalisation, pixel and feature losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semaim.errors import UserError
from semaim.targets import Features, Pixels, patchify


def coded_image() -> Tensor:
    """(1, 3, 4, 4) whose values encode their position: 100 * colour + 10 * row + column."""
    colour, row, column = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(4), indexing="ij")
    return (100 * colour + 10 * row + column)[None].float()


def test_patchify_by_hand():
    patches_BLP = patchify(coded_image(), 2)
    assert patches_BLP.shape == (1, 4, 12)
    # Inside a patch: row, column, then colour.
    assert patches_BLP[0].tolist() == [
        [0, 100, 200, 1, 101, 201, 10, 110, 210, 11, 111, 211],
        [2, 102, 202, 3, 103, 203, 12, 112, 212, 13, 113, 213],
        [20, 120, 220, 21, 121, 221, 30, 130, 230, 31, 131, 231],
        [22, 122, 222, 23, 123, 223, 32, 132, 232, 33, 133, 233],
    ]


def test_patchify_can_be_undone():
    images_BCHW = torch.randn(2, 3, 8, 12)  # 2 x 3 patches of 4
    patches_BLP = patchify(images_BCHW, 4)
    assert patches_BLP.shape == (2, 6, 48)
    rebuilt_BCHW = torch.empty_like(images_BCHW)
    for i in range(6):
        row, column = divmod(i, 3)
        patch_BCpp = patches_BLP[:, i].view(2, 4, 4, 3).permute(0, 3, 1, 2)
        rebuilt_BCHW[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = patch_BCpp
    assert torch.equal(rebuilt_BCHW, images_BCHW)


def test_normalisation_by_hand():
    images_BCHW = torch.zeros(1, 3, 2, 4)
    images_BCHW[0, :, :, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # patch 0: 1 2 3 4 in each colour
    images_BCHW[0, :, :, 2:] = 7.0  # patch 1: constant
    target_BLP = Pixels(patch_size=2, blur_kernel_size=0)(images_BCHW)
    # Mean 2.5; squared deviations 3 * (2.25 + 0.25 + 0.25 + 2.25) = 15 over 12 - 1 values.
    scale = math.sqrt(15 / 11 + 1e-6)
    expected_P = torch.tensor([value for value in (1, 2, 3, 4) for _ in range(3)]).sub(2.5) / scale
    assert (target_BLP[0, 0] - expected_P).abs().max() <= 1e-6
    assert torch.equal(target_BLP[0, 1], torch.zeros(12))  # 1e-6 keeps a constant patch finite
    # Variance far below 1e-6 is hardly amplified: 1e-4 * (1 2 3 4) has variance 1.36e-8.
    target_BLP = Pixels(patch_size=2, blur_kernel_size=0)(images_BCHW * 1e-4)
    expected_P = expected_P * scale * 1e-4 / math.sqrt(15 / 11 * 1e-8 + 1e-6)
    assert (target_BLP[0, 0] - expected_P).abs().max() <= 1e-6


def test_without_blur_and_normalisation_the_target_is_the_patches():
    images_BCHW = torch.randn(2, 3, 8, 8)
    pixels = Pixels(patch_size=4, blur_kernel_size=0, norm_pix=False)
    assert pixels.blur(images_BCHW) is images_BCHW
    assert torch.equal(pixels(images_BCHW), patchify(images_BCHW, 4))
    assert pixels(images_BCHW).shape[-1] == pixels.channels == 48


@pytest.mark.parametrize(("size", "sigma"), [(9, 1.0), (5, 2.0), (1, 1.0)])
def test_blur_is_the_two_dimensional_gaussian_with_zero_padding(size, sigma):
    pixels = Pixels(patch_size=4, blur_kernel_size=size, blur_sigma=sigma)
    radius = size // 2
    kernel = {
        (y, x): math.exp(-(x * x + y * y) / (2 * sigma**2))
        for y in range(-radius, radius + 1)
        for x in range(-radius, radius + 1)
    }
    total = sum(kernel.values())
    images_BCHW = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(2, 3, 12 + 2 * radius, 16 + 2 * radius, dtype=torch.float64)
    padded[:, :, radius : radius + 12, radius : radius + 16] = images_BCHW
    expected = torch.zeros(2, 3, 12, 16, dtype=torch.float64)
    for (y, x), weight in kernel.items():
        expected += weight / total * padded[:, :, radius + y : radius + y + 12, radius + x : radius + x + 16]
    assert (pixels.blur(images_BCHW) - expected).abs().max() <= 1e-6
    blurred_BLP = Pixels(4, blur_kernel_size=size, blur_sigma=sigma, norm_pix=False)(images_BCHW)
    assert (blurred_BLP - patchify(expected, 4)).abs().max() <= 1e-6


def test_blur_keeps_a_constant_image_inside_and_darkens_the_border():
    blurred_BCHW = Pixels(patch_size=4).blur(torch.ones(1, 3, 16, 16))
    assert (blurred_BCHW[:, :, 4:12, 4:12] - 1).abs().max() <= 1e-6
    line = [math.exp(-(x**2) / 2) for x in range(-4, 5)]
    half = sum(line[4:]) / sum(line)  # at the edge half of the kernel covers zeros
    assert blurred_BCHW[0, :, 0, 8].tolist() == pytest.approx([half] * 3, rel=1e-6)
    assert blurred_BCHW[0, :, 15, 0].tolist() == pytest.approx([half**2] * 3, rel=1e-6)


def test_pixel_losses_by_hand():
    prediction_BLP = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    target_BLP = torch.tensor([[[1.0, 0.0, 6.0], [0.0, -1.0, 0.5]]])
    l2_BL = Pixels(patch_size=1, loss="l2").loss(prediction_BLP, target_BLP)
    l1_BL = Pixels(patch_size=1, loss="l1").loss(prediction_BLP, target_BLP)
    assert l2_BL.tolist() == [pytest.approx([(0 + 4 + 9) / 3, (0 + 1 + 0.25) / 3])]
    assert l1_BL.tolist() == [pytest.approx([(0 + 2 + 3) / 3, (0 + 1 + 0.5) / 3])]


def test_feature_loss_by_hand():
    features = Features(channels=2)
    target_BLP = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [3.0, 4.0]]])
    prediction_BLP = torch.tensor([[[5.0, 0.0], [7.0, 0.0], [-1.0, 0.0], [4.0, 3.0]]])
    cosines = [1.0, 0.0, -1.0, 24 / 25]
    expected = [2 - 2 * cosine for cosine in cosines]
    assert features.loss(prediction_BLP, target_BLP)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert features.channels == 2


def test_feature_loss_is_two_minus_two_cos():
    generator = torch.Generator().manual_seed(0)
    prediction_BLP, target_BLP = (torch.randn(3, 5, 32, generator=generator) for _ in range(2))
    dot = (prediction_BLP * target_BLP).sum(-1)
    expected_BL = 2 - 2 * dot / (prediction_BLP.norm(dim=-1) * target_BLP.norm(dim=-1))
    assert (Features(32).loss(prediction_BLP, target_BLP) - expected_BL).abs().max() <= 1e-6


def test_no_gradient_reaches_the_images_through_the_target():
    images_BCHW = torch.randn(1, 3, 8, 8, requires_grad=True)
    pixels = Pixels(patch_size=4)
    target_BLP = pixels(images_BCHW)
    assert not target_BLP.requires_grad
    prediction_BLP = torch.zeros(1, 4, 48, requires_grad=True)
    pixels.loss(prediction_BLP, target_BLP).mean().backward()
    assert images_BCHW.grad is None
    # d/dp of the mean over 4 patches of the mean over 48 channels of (p - t)^2, at p = 0
    assert (prediction_BLP.grad + 2 * target_BLP / (4 * 48)).abs().max() <= 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur_kernel_size": 8}, r"target\.blur_kernel_size=8 must be odd, or 0 for no blur"),
        ({"blur_kernel_size": -3}, r"target\.blur_kernel_size=-3"),
        ({"blur_sigma": 0.0}, r"target\.blur_sigma=0\.0 must be positive"),
        ({"loss": "huber"}, r"target\.loss=huber is unknown: choose l1 or l2"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Pixels(patch_size=4, **options)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_full_precision_under_autocast(loss):
    pixels, features = Pixels(patch_size=4, loss=loss), Features(48)
    images_BCHW = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction_BLP = torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected_BLP = pixels(images_BCHW)
    with torch.autocast("cpu", torch.bfloat16):
        target_BLP = pixels(images_BCHW)
        losses = [pixels.loss(prediction_BLP, target_BLP), features.loss(prediction_BLP, target_BLP)]
    assert target_BLP.dtype == torch.float32
    assert torch.equal(target_BLP, expected_BLP)
    expected = [pixels.loss(prediction_BLP.float(), target_BLP), features.loss(prediction_BLP.float(), target_BLP)]
    for under_autocast, in_float32 in zip(losses, expected, strict=True):
        assert under_autocast.dtype == torch.float32
        assert torch.equal(under_autocast, in_float32)
    # The same holds for two low-precision inputs, as with a teacher under autocast.
    low_BLP = target_BLP.bfloat16()
    for target in (pixels, features):
        assert torch.equal(target.loss(prediction_BLP, low_BLP), target.loss(prediction_BLP.float(), low_BLP.float()))
    # Half-precision images are also blurred and normalised in float32.
    low_BCHW = images_BCHW.bfloat16()
    assert torch.equal(pixels(low_BCHW), pixels(low_BCHW.float()))
