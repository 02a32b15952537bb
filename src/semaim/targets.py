"""Prediction targets per patch, and their losses.

Shapes: B images, C channels, L patches, P target channels. Targets and losses are raster-indexed.
A target is called with normalised images and the cache of their tokens (semaim.models.token_cache).
Source: SemAIM (arXiv 2312.10457), sections 3.1 and 3.3; normalised pixels: MAE (arXiv 2111.06377), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.errors import UserError
from semaim.models.token_cache import TokenCache

if TYPE_CHECKING:
    from semaim.models.predictor import Predictor


class Target(Protocol):
    """Interface of a pretraining target."""

    @property
    def channels(self) -> int:
        """P."""
        ...

    @property
    def network_name(self) -> str | None:
        """Name in `TokenCache` of the network whose tokens are the target; None if it needs no network."""
        ...

    def check(self, model: Predictor) -> None:
        """Raise UserError if the model does not fit this target."""
        ...

    def fitted(self, model: Predictor, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Copy of this target for another model.

        Args:
            model: the other model; it determines the patches.
            mean: means of its images' colours, which normalise them.
            std: their standard deviations.
        """
        ...

    def __call__(self, images_BCHW: Tensor, cache: TokenCache) -> Tensor:
        """Target values (B, L, P) of normalised images, without gradient."""
        ...

    def loss(self, prediction_BLP: Tensor, target_BLP: Tensor) -> Tensor:
        """Loss per patch (B, L), float32."""
        ...


class PatchTarget:
    """Base of targets that depend on the side of a patch in pixels, their `patch_size`."""

    patch_size: int

    def check(self, model: Predictor) -> None:
        """Raise UserError if the model's patch size differs."""
        if self.patch_size != model.patch_size:
            raise UserError(
                f"the model has patches of {model.patch_size} pixels, the target of {self.patch_size}: change "
                f"data.patch_size, which both follow"
            )

    def fitted(self, model: Predictor, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Copy of this target for another model; see `Target`."""
        adapted = copy(self)
        adapted.patch_size = model.patch_size
        return adapted


class Pixels(PatchTarget):
    """The pixels of each patch of the blurred image, optionally normalised per patch.

    Args:
        patch_size: pixels per side of a patch.
        blur_kernel_size: side of the Gaussian kernel in pixels, odd; 0 for no blur.
        blur_sigma: standard deviation of the Gaussian in pixels.
        norm_pix: normalise each patch by its mean and unbiased variance (+ 1e-6).
        loss: "l2" (squared difference) or "l1" (absolute difference), mean over the patch's channels.
    """

    network_name = None

    def __init__(
        self,
        patch_size: int,
        blur_kernel_size: int = 9,
        blur_sigma: float = 1.0,
        norm_pix: bool = True,
        loss: Literal["l1", "l2"] = "l2",
    ) -> None:
        if blur_kernel_size and (blur_kernel_size < 0 or blur_kernel_size % 2 == 0):
            raise UserError(f"target.blur_kernel_size={blur_kernel_size} must be odd, or 0 for no blur")
        if blur_kernel_size and blur_sigma <= 0:
            raise UserError(f"target.blur_sigma={blur_sigma} must be positive")
        if loss not in ("l1", "l2"):
            raise UserError(f"target.loss={loss} is unknown: choose l1 or l2")
        self.patch_size = patch_size
        self.blur_kernel_size = blur_kernel_size
        self.blur_sigma = blur_sigma
        self.norm_pix = norm_pix
        self.loss_kind = loss

    @property
    def channels(self) -> int:
        """P: three colours per pixel of a patch."""
        return 3 * self.patch_size**2

    def __call__(self, images_BCHW: Tensor, cache: TokenCache | None = None) -> Tensor:
        """Targets (B, L, P), float32, of normalised images; channel last inside a patch (row, column, colour)."""
        with torch.no_grad(), torch.autocast(images_BCHW.device.type, enabled=False):
            target_BLP = patchify(self.blur(images_BCHW.float()), self.patch_size)
            if not self.norm_pix:
                return target_BLP
            mean_BL1 = target_BLP.mean(-1, keepdim=True)
            variance_BL1 = target_BLP.var(-1, keepdim=True)
            return (target_BLP - mean_BL1) / (variance_BL1 + 1e-6).sqrt()

    def blur(self, images_BCHW: Tensor) -> Tensor:
        """Gaussian blur of each colour channel with zero padding; the identity for kernel size 0."""
        if not self.blur_kernel_size:
            return images_BCHW
        radius = self.blur_kernel_size // 2
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=images_BCHW.device)
        kernel = (-(offsets**2) / (2 * self.blur_sigma**2)).exp()
        kernel = (kernel / kernel.sum()).to(images_BCHW)
        channels = images_BCHW.shape[1]
        rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        blurred = F.conv2d(images_BCHW, rows, padding=(radius, 0), groups=channels)
        return F.conv2d(blurred, columns, padding=(0, radius), groups=channels)

    def loss(self, prediction_BLP: Tensor, target_BLP: Tensor) -> Tensor:
        """Loss per patch (B, L), float32: mean over channels of the squared or absolute difference."""
        difference_BLP = prediction_BLP.float() - target_BLP.float()
        return (difference_BLP.square() if self.loss_kind == "l2" else difference_BLP.abs()).mean(-1)


class Features:
    """Patch tokens of a network, compared by direction.

    Args:
        channels: P, the width of these tokens.
        network: name of the network in `TokenCache`.
    """

    def __init__(self, channels: int = 512, network: str = "teacher") -> None:
        self.channels = channels
        self.network_name = network

    def __call__(self, images_BCHW: Tensor, cache: TokenCache) -> Tensor:
        """Targets (B, L, P), without gradient."""
        return cache.tokens(self.network_name)[:, 1:]

    def loss(self, prediction_BLP: Tensor, target_BLP: Tensor) -> Tensor:
        """Loss per patch (B, L), float32: squared distance of the L2-normalised vectors, 2 - 2 cos."""
        prediction_BLP = F.normalize(prediction_BLP.float(), dim=-1)
        target_BLP = F.normalize(target_BLP.float(), dim=-1)
        return (prediction_BLP - target_BLP).square().sum(-1)


class EncoderFeatures(Features):
    """Patch tokens of the model's own encoder after its final norm.

    Args:
        source: "online", the encoder being trained, or "ema", its moving average.
        channels: P, the encoder's width.
    """

    def __init__(self, source: Literal["online", "ema"], channels: int) -> None:
        if source not in ("online", "ema"):
            raise UserError(f"target.source={source} is unknown: choose online or ema")
        super().__init__(channels, source)

    def check(self, model: Predictor) -> None:
        """Raise UserError if the encoder's width differs."""
        if self.channels != model.embed_dim:
            raise UserError(
                f"target.channels={self.channels}, but the encoder's tokens have {model.embed_dim} (model.embed_dim), "
                f"which it follows when it is left out"
            )

    def fitted(self, model: Predictor, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Copy of this target for another model; see `Target`."""
        adapted = copy(self)
        adapted.channels = model.embed_dim
        return adapted


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, channel last inside a patch: (B, L, P) with P = patch_size^2 * C."""
    batch, channels, height, width = images_BCHW.shape
    h, w = height // patch_size, width // patch_size
    patches = images_BCHW.reshape(batch, channels, h, patch_size, w, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, patch_size**2 * channels)
