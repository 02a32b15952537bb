"""The contract of an evaluator: what looks at a model while it learns.

`evaluators=[knn,linear,pictures]` chooses them from conf/evaluators; each is an entry of `task.evaluators`.

Shapes: B images, C colours, H x W pixels, N tokens (cls first), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from semaim.data.image_data import ImageData
from semaim.models.predictor import Predictor
from semaim.models.token_cache import Encoder
from semaim.models.vit import pooled
from semaim.permutations import Permutation
from semaim.runs.context import Run
from semaim.semantics import SemanticMap
from semaim.targets import Target


@dataclass(frozen=True)
class Learner:
    """A model in training, in eval mode, and what it is trained with.

    Attributes:
        model: the model in training, without wrappers.
        encoders: networks that encode images, by name: "online" (the model), "ema" and "teacher" if there are any.
        map_network: the name of the one that semantic maps are computed from; None if the order needs no map.
        permutation: order of the patches in training.
        semantic_map: computes the map that the order follows.
        target: what is predicted.
        data: images.
        step: completed steps.
        epoch: completed epochs.
    """

    model: Predictor
    encoders: Mapping[str, Encoder]
    map_network: str | None
    permutation: Permutation
    semantic_map: SemanticMap
    target: Target
    data: ImageData
    step: int
    epoch: int

    def features(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Features (B, D) of normalised images: "cls" and "mean" (of the patch tokens)."""
        return pooled(self.model.encode(images_BCHW))


def evaluation_is_due(every_epochs: int | None, epoch: int, last: bool) -> bool:
    """Whether to evaluate after an epoch (0: before training): at the end, and every so many epochs, if it is given."""
    return last or (every_epochs is not None and epoch > 0 and epoch % every_epochs == 0)


class Evaluator:
    """Base class of evaluators. A subclass implements `evaluate`; the other methods are for those that learn.

    Args:
        every_epochs: epochs between evaluations, besides the first (before training) and the last; null for only these.

    Attributes:
        highlights: metrics to look at in MLflow, with a description.
        learns: whether `learn` is called at each step; this costs an encoder pass, unless the order or the target also
            needs the encoder's tokens.
    """

    highlights: ClassVar[Mapping[str, str]] = {}
    learns: ClassVar[bool] = False

    def __init__(self, every_epochs: int | None) -> None:
        self.every_epochs = every_epochs

    def is_due(self, epoch: int, last: bool) -> bool:
        """Whether to evaluate after an epoch (0: before training)."""
        return epoch == 0 or evaluation_is_due(self.every_epochs, epoch, last)

    def check(self, data: ImageData) -> None:
        """Raise UserError if these data cannot be evaluated, before anything is written."""

    def begin(self, model: Predictor, data: ImageData, run: Run) -> None:
        """Prepare, on the device of training."""

    def learn(self, features: Mapping[str, Tensor], labels_B: Tensor) -> None:
        """Learn from a micro-batch of the last step, after its update.

        Args:
            features: "cls" and "mean" (B, D) of the encoder before the update, without gradient.
            labels_B: classes; -1 for unlabelled images.
        """

    def evaluate(self, learner: Learner, run: Run) -> dict[str, float]:
        """Metrics of the model by their full names, such as "online/knn_10_cls". Called by all processes."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints, in plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
