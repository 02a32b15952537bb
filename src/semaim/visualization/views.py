"""Maps, orders and predictions of a model on images: the data of the figures.

Shapes: B images, C colours, H x W pixels, (h, w) grid, L = h * w patches, P target channels. Values per patch are
raster-indexed. Source of the maps and orders: SemAIM (arXiv 2312.10457), sections 3.2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semaim.models.predictor import Prediction, Predictor
from semaim.models.token_cache import Encoder, TokenCache
from semaim.permutations import Grid, Permutation, noise_columns, ranks
from semaim.semantics import SemanticMap
from semaim.targets import Pixels, Target, patchify


@dataclass(frozen=True)
class Colours:
    """Colour normalisation of images, to be undone for display.

    Attributes:
        mean, std: per colour.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def denormalise(self, images_BCHW: Tensor) -> Tensor:
        """Undo the normalisation: images (B, H, W, C) with colours in [0, 1]."""
        mean_C, std_C = (torch.tensor(list(values), device=images_BCHW.device) for values in (self.mean, self.std))
        return (images_BCHW.float().movedim(1, -1) * std_C + mean_C).clamp(0, 1).cpu()


@dataclass(frozen=True)
class Maps:
    """Attention and semantic map of an encoder on images, in float32.

    Attributes:
        attention_BL: the last block's attention from the class token, averaged over heads.
        semantic_BL: the semantic map that orders follow.
    """

    attention_BL: Tensor
    semantic_BL: Tensor


@dataclass(frozen=True)
class PredictedImages:
    """A model's prediction of patches from others.

    Attributes:
        order_BL: the order.
        error_BL: loss of each patch.
        counted_BL: bool, the patches that it predicts; the others are what it sees. None if it predicts all, each from
            those before it.
        target_BCHW: the target, as normalised images; None for features.
        predicted_BCHW: the prediction, likewise; the target where the model sees it.
    """

    order_BL: Tensor
    error_BL: Tensor
    counted_BL: Tensor | None = None
    target_BCHW: Tensor | None = None
    predicted_BCHW: Tensor | None = None

    def subset(self, images: slice) -> PredictedImages:
        """The same for some of the images."""
        others = (self.counted_BL, self.target_BCHW, self.predicted_BCHW)
        chosen = (part if part is None else part[images] for part in others)
        return PredictedImages(self.order_BL[images], self.error_BL[images], *chosen)


def predict(
    prediction: Prediction, images_BCHW: Tensor, order_BL: Tensor, target: Target, cache: TokenCache, grid: Grid
) -> PredictedImages:
    """Compare a model's predictions with the target; predicted pixels are returned as images.

    If pixels are normalised per patch, each predicted patch gets the mean and the variance of the true patch, which are
    not predicted, as in the figures of MAE (arXiv 2111.06377).
    """
    target_BLP = target(images_BCHW, cache)
    predictions_BLP, counted_BL = prediction
    error_BL = target.loss(predictions_BLP, target_BLP)
    if not isinstance(target, Pixels):
        return PredictedImages(order_BL, error_BL, counted_BL)
    true_BLP = patchify(target.blur(images_BCHW.float()), target.patch_size)
    predicted_BLP = predictions_BLP.float()
    if target.norm_pix:
        scale_BL1 = (true_BLP.var(-1, keepdim=True) + 1e-6).sqrt()
        predicted_BLP = predicted_BLP * scale_BL1 + true_BLP.mean(-1, keepdim=True)
    if counted_BL is not None:
        predicted_BLP = torch.where(counted_BL[..., None], predicted_BLP, true_BLP)
    images = (unpatchify(each_BLP, grid) for each_BLP in (true_BLP, predicted_BLP))
    return PredictedImages(order_BL, error_BL, counted_BL, *images)


@dataclass(frozen=True)
class Viewer:
    """A model, and what is needed to compute its views of images.

    Attributes:
        model: in eval mode.
        encoders: networks that may make a pass over images, by their names in `TokenCache`.
        network: the encoder that semantic maps are computed from.
        semantic_map: kind of the semantic map.
        permutations: orders, by name.
        target: target of the model; None if it is unknown, then nothing is predicted.
    """

    model: Predictor
    encoders: Mapping[str, Encoder]
    network: str
    semantic_map: SemanticMap
    permutations: Mapping[str, Permutation]
    target: Target | None

    @torch.no_grad()
    def view(self, images_BCHW: Tensor, seed: int, predict_order: str | None) -> View:
        """Compute maps, orders and predictions for normalised images.

        Args:
            images_BCHW: on the model's device.
            seed: for random parts of orders; the same seed breaks ties in the same way.
            predict_order: name of the order to predict in; None for no prediction.
        """
        cache, grid = TokenCache(self.encoders, images_BCHW), self.model.grid
        attention_BL = cache.attention(self.network).float()
        semantic_BL = self.semantic_map(cache, self.network)
        maps = Maps(attention_BL, semantic_BL)
        generator = torch.Generator().manual_seed(seed)
        noise_BK = torch.rand(len(images_BCHW), noise_columns(grid), generator=generator).to(images_BCHW.device)
        orders = {name: each.order(grid, noise_BK, semantic_BL) for name, each in self.permutations.items()}
        if predict_order is None or self.target is None:
            return View(maps, orders, None)
        order_BL = orders[predict_order]
        prediction = predict(self.model(images_BCHW, order_BL), images_BCHW, order_BL, self.target, cache, grid)
        return View(maps, orders, prediction)


@dataclass(frozen=True)
class View:
    """Maps, orders and predictions of a model on images.

    Attributes:
        maps: attention and semantic map.
        orders: by name, (B, L) each.
        prediction: of patches, or None.
    """

    maps: Maps
    orders: Mapping[str, Tensor]
    prediction: PredictedImages | None

    def subset(self, images: slice) -> View:
        """The same for some of the images."""
        selected = Maps(self.maps.attention_BL[images], self.maps.semantic_BL[images])
        orders = {name: order_BL[images] for name, order_BL in self.orders.items()}
        return View(selected, orders, self.prediction and self.prediction.subset(images))


def unpatchify(patches_BLP: Tensor, grid: Grid) -> Tensor:
    """Images (B, C, H, W) from patches (B, L, P) with colours last: the inverse of `patchify`."""
    side = int((patches_BLP.shape[-1] // 3) ** 0.5)
    cut = patches_BLP.unflatten(-1, (side, side, 3)).unflatten(1, grid)  # B, h, w, row, column, colour
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def reveal(images_BCHW: Tensor, order_BL: Tensor, patch_size: int, count: int) -> Tensor:
    """Normalised images in which the first `count` patches of their order are visible and the rest is blank."""
    return without(images_BCHW, ranks(order_BL) >= count, patch_size)


def without(images_BCHW: Tensor, hidden_BL: Tensor, patch_size: int) -> Tensor:
    """Normalised images in which some patches are blank."""
    grid = images_BCHW.shape[-2] // patch_size, images_BCHW.shape[-1] // patch_size
    hidden_B1hw = hidden_BL.unflatten(1, grid)[:, None]
    hidden_B1HW = hidden_B1hw.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return images_BCHW.masked_fill(hidden_B1HW, 0.0)
