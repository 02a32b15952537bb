"""Linear classifiers on frozen features; several are trained together.

Shapes: S heads, K kinds of features, B images, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semaim.errors import UserError

BATCH_NORM_EPS = 1e-6
INIT_STD = 0.01


class LinearHeads(nn.Module):
    """A linear classifier for each kind of feature and each learning rate, after batch normalisation without affine.

    The heads share only the normalisation of their features, which has no parameters, so they train independently.
    Source: MAE (arXiv 2111.06377), appendix A.1.

    Args:
        width: D.
        num_classes: C.
        kinds: K, the number of kinds of features.
        lr_scales: factors on the learning rate; each kind has one head per factor. The index of a head is
            s = kind * len(lr_scales) + index of its factor.
    """

    def __init__(self, width: int, num_classes: int, kinds: int, lr_scales: Sequence[float]) -> None:
        super().__init__()
        self.lr_scales = list(lr_scales)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS) for _ in range(kinds))
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(kinds * len(self.lr_scales)))
        for head in self.heads.modules():
            if isinstance(head, nn.Linear):
                nn.init.normal_(head.weight, std=INIT_STD)
                nn.init.zeros_(head.bias)

    def forward(self, features_KBD: Tensor) -> Tensor:
        """Logits (S, B, C) in float32."""
        normed = [norm(x_BD.float()) for norm, x_BD in zip(self.norms, features_KBD, strict=True)]
        return torch.stack([head(normed[s // len(self.lr_scales)]).float() for s, head in enumerate(self.heads)])


def head_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the heads, with their factors on the learning rate; biases have no weight decay.

    Raises:
        UserError: if the model is not a `LinearHeads`.
    """
    if not isinstance(model, LinearHeads):
        raise UserError("optimizer.groups: groups of heads are for linear classifiers (task=linprobe)")
    groups = []
    for s, head in enumerate(model.heads):
        scale = model.lr_scales[s % len(model.lr_scales)]
        groups.append({"params": [head.weight], "weight_decay": weight_decay, "lr_scale": scale})
        groups.append({"params": [head.bias], "weight_decay": 0.0, "lr_scale": scale})
    return groups
