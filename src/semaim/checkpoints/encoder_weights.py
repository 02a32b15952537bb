"""Weights of an encoder by timm's names, with the sizes that rebuild it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints.formats import Normalisation
from semaim.models.vit import Pool, as_timm, build_vit, with_weights


@dataclass(frozen=True)
class EncoderWeights:
    """Weights of an encoder, and what rebuilds it.

    Attributes:
        sizes: arguments of `build_vit`.
        pool: position of the last norm: on all tokens ("cls"), or on the mean of the patch tokens ("mean").
        num_classes: outputs of its head (a trained classifier or CLIP's projection); 0 for none.
        weights: weights by timm's names, including the head if there is one; other names are ignored.
        normalisation: colour normalisation of its images, if a file of another project determines it.
    """

    sizes: dict[str, Any]
    pool: Pool
    num_classes: int
    weights: dict[str, Tensor]
    normalisation: Normalisation | None = None

    def network(self, head: bool, any_size: bool = False) -> VisionTransformer:
        """The encoder.

        Args:
            head: with its head, if it has one.
            any_size: for images of any size: positions are resampled in every pass.

        Raises:
            TypeError: if `any_size` is asked for and timm's model has a fixed image size.
        """
        sizes = self.sizes
        if any_size:
            name, args = as_timm(sizes)
            sizes = {"timm": name, "args": args | {"dynamic_img_size": True}}
        return with_weights(build_vit(sizes, self.num_classes if head else 0, self.pool, 0.0), self.weights)

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new head; the norm before the head is also new if its position differs in the file."""
        return with_weights(build_vit(self.sizes, num_classes, pool, drop_path), self.weights, new_head=True)
