"""Weights of an encoder by timm's names, with the sizes that rebuild it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints.formats import Normalisation
from semaim.models.vit import Pool, as_timm, build_vit

HEADS = ("head.", "head_dist.")


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

    def encoder(self) -> VisionTransformer:
        """The encoder without its head."""
        return self._loaded(build_vit(self.sizes, 0, self.pool, 0.0))

    def encoder_for_any_size(self, head: bool) -> VisionTransformer:
        """The encoder for images of any size, with its head if asked for; positions are resampled in every pass.

        Raises:
            TypeError: if timm's model has a fixed image size.
        """
        name, args = as_timm(self.sizes)
        sizes = {"timm": name, "args": args | {"dynamic_img_size": True}}
        return self._loaded(build_vit(sizes, self.num_classes if head else 0, self.pool, 0.0))

    def classifier(self, num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
        """The encoder with a new head; the norm before the head is also new if its position differs in the file."""
        return self._loaded(build_vit(self.sizes, num_classes, pool, drop_path), new=("norm.", "fc_norm.", *HEADS))

    def trained_classifier(self) -> VisionTransformer:
        """The encoder with its trained head."""
        return self._loaded(build_vit(self.sizes, self.num_classes, self.pool, 0.0))

    def _loaded(self, vit: VisionTransformer, new: tuple[str, ...] = ()) -> VisionTransformer:
        initial = vit.state_dict()
        loaded = {name: value for name, value in self.weights.items() if name in initial}
        if new:
            loaded = {name: value for name, value in loaded.items() if not name.startswith(HEADS)}
        missing = [name for name in initial.keys() - loaded.keys() if not name.startswith(new)]
        assert not missing, missing
        vit.load_state_dict(initial | loaded)
        return vit
